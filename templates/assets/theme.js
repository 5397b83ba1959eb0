// Applies the chosen theme before the first paint. Runs alone in the head.
"use strict";
try {
  const theme = localStorage.getItem("shepherd.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is disabled; the system theme applies.
}
