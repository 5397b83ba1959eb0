// Colours and dashes of series, distinguishable with colour vision deficiency.

import { onThemeChange } from "./shell.js";

const COLOURS = 8;
const DASHES = [[], [5, 3], [1.5, 3]];

const colourOf = (place) => place % COLOURS;
const dashOf = (place) => Math.floor(place / COLOURS) % DASHES.length;

const seen = new Map();
onThemeChange(() => seen.clear());

/** Returns a colour of the style sheet in the current theme. */
export function colour(name) {
  if (!seen.has(name)) seen.set(name, read(name));
  return seen.get(name);
}

function read(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/** Returns the line style of the series at `place`. */
export const look = (place) => ({ stroke: colour(`--c${colourOf(place)}`), dash: DASHES[dashOf(place)] });

/** Returns its legend symbol. */
export const swatch = (place) => `<svg class="swatch c${colourOf(place)} d${dashOf(place)}" viewBox="0 0 14 4" aria-hidden="true"><path d="M0 2h14"/></svg>`;

/** Returns a colour with reduced opacity. */
export const faint = (color, share) => {
  const parts = color.match(/[\d.]+/g) ?? ["0", "0", "0"];
  return `rgb(${parts[0]} ${parts[1]} ${parts[2]} / ${share})`;
};
