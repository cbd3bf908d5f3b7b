// Before anything is drawn, so that a chosen theme does not flash.
try {
  const theme = JSON.parse(localStorage.getItem("finesteer.theme") ?? '"system"');
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage, no choice: the system's theme
}
