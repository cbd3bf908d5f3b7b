"""vLLM's routes around tokens, with which lm-eval scores answers without a tokenizer of its own."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local.runtime.batch import completion_request
from finesteer_local.server.requests import check_tokens, text_of
from finesteer_local.server.running import size_of
from finesteer_local.server.schemas import ERRORS
from finesteer_local.server.service import Model, Service
from finesteer_local.server.tokens_schemas import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(responses=ERRORS)

    @routes.post("/tokenize")
    async def tokenize(http: HttpRequest, wanted: TokenizeRequest) -> Tokenized:
        """Tokens of a text, as `/v1/completions` makes them."""
        service.check_name(wanted.model)
        return await service.prepare(lambda model: _tokens(model, wanted), size_of(http))

    @routes.post("/detokenize")
    async def detokenize(http: HttpRequest, wanted: DetokenizeRequest) -> Detokenized:
        """The text of tokens; what is no whole letter is left out."""
        service.check_name(wanted.model)
        return await service.prepare(lambda model: _detokenized(model, wanted.tokens), size_of(http))

    @routes.get("/tokenizer_info")
    async def get_tokenizer_info() -> TokenizerInfo:
        """Special tokens and the chat template."""
        return await service.prepare(_info)

    return routes


def _tokens(model: Model, wanted: TokenizeRequest) -> Tokenized:
    llama = model.llama
    if wanted.add_special_tokens is False:
        tokens = llama.tokenize(wanted.prompt.encode(), add_bos=False, special=True)
    else:
        tokens = list(completion_request(llama, wanted.prompt).prompt)
    return Tokenized(tokens=tokens, count=len(tokens), max_model_len=model.engine.n_ctx)


def _detokenized(model: Model, tokens: list[int]) -> Detokenized:
    check_tokens(model, tokens, "tokens")
    return Detokenized(prompt=text_of(model, tokens))


def _info(model: Model) -> TokenizerInfo:
    llama = model.llama
    bos, eos = llama.token_bos(), llama.token_eos()
    return TokenizerInfo(
        tokenizer_class=llama.metadata.get("tokenizer.ggml.model", ""),
        chat_template=llama.metadata.get("tokenizer.chat_template"),
        bos_token=text_of(model, [bos]) if bos != -1 else None,
        eos_token=text_of(model, [eos]) if eos != -1 else None,
    )
