// Shell of every page: theme, keyboard shortcuts, help.

const THEMES = ["auto", "light", "dark"];
const themeChanged = new Set();

/** Persistent values; does nothing where storage is disabled. */
export const kept = {
  get(name) {
    try {
      return localStorage.getItem(`shepherd.${name}`);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      if (value === null) localStorage.removeItem(`shepherd.${name}`);
      else localStorage.setItem(`shepherd.${name}`, value);
    } catch {
      // The value then lasts until the page is closed.
    }
  },
};

/** Calls `then` whenever the theme changes. */
export function onThemeChange(then) {
  themeChanged.add(then);
}

function tellTheme() {
  for (const then of themeChanged) then();
}

function nextTheme() {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  kept.set("theme", next === "auto" ? null : next);
  nameTheme();
  tellTheme();
}

function nameTheme() {
  document.getElementById("theme").textContent = document.documentElement.dataset.theme ?? "auto";
}

/** Starts the shell. `keys`: additional shortcuts of the page, by key. */
export function startShell(keys) {
  const theme = document.getElementById("theme");
  const help = document.getElementById("help");
  const openHelp = document.getElementById("help-open");
  theme.hidden = openHelp.hidden = false;
  nameTheme();
  theme.addEventListener("click", nextTheme);
  openHelp.addEventListener("click", () => help.showModal());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tellTheme);

  const all = { t: nextTheme, "?": () => help.showModal(), ...keys };
  let afterG = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (typing && event.key !== "Escape") return;
    if (performance.now() < afterG) {
      afterG = 0;
      const page = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
      if (page) {
        event.preventDefault();
        page.click();
        return;
      }
    }
    if (event.key === "g") {
      afterG = performance.now() + 1200;
      return;
    }
    const act = all[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });
}
