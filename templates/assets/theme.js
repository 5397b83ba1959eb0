// Sets the chosen theme before anything is drawn. Runs in the head, alone.
"use strict";
try {
  const theme = localStorage.getItem("shepherd.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system decides.
}
