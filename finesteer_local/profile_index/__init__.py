"""Profiles that somebody else trained: the indexes that list them, fetching one, and making one ready to publish.

An index is a JSON file (docs/profile-index.md) in a folder or on the web. None is asked that the user has not named,
and all that is sent is the request for a file.
"""

from finesteer_local.profile_index.entries import Entry, read_index
from finesteer_local.profile_index.fetching import fetch_entry
from finesteer_local.profile_index.indexes import Index, add_index, named_indexes, remove_index, search
from finesteer_local.profile_index.packing import Packed, pack_profile

__all__ = [
    "Entry",
    "Index",
    "Packed",
    "add_index",
    "fetch_entry",
    "named_indexes",
    "pack_profile",
    "read_index",
    "remove_index",
    "search",
]
