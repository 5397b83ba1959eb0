// Series: converts points to columns with gaps, selects the series to draw, and implements the legend.

import { MISSING } from "./figures.js";
import { visible } from "./names.js";
import { swatch } from "./palette.js";
import { kept } from "./shell.js";

/** Maximum number of distinguishable series. */
export const MOST = 12;
/** Gap threshold, seconds; samples are recorded every half minute. */
const GAP = 100;

/** Returns the times of a response's buckets. */
export function timesOf({ since, until, bucket_seconds: bucket }) {
  return Array.from({ length: Math.max(1, Math.round((until - since) / bucket)) }, (_, i) => since + i * bucket);
}

/**
 * Returns one column of points `[ts, …]`: the value at `place`, null in a gap; undefined for a missing bucket
 * between two close ones, so that the line continues.
 */
export function column(points, { since, bucket_seconds: bucket }, times, place, nothing = null) {
  const values = new Array(times.length).fill(nothing);
  let before = null;
  for (const point of points) {
    const i = Math.round((point[0] - since) / bucket);
    if (i < 0 || i >= times.length) continue;
    values[i] = point[place];
    if (before !== null && nothing === null && (i - before) * bucket <= GAP) values.fill(undefined, before + 1, i);
    before = i;
  }
  return values;
}

/** Points without neighbours, which a line alone would not show. */
export function lonely(u, index) {
  const values = u.data[index];
  const found = [];
  values.forEach((value, i) => {
    if (value !== null && value !== undefined && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null) found.push(i);
  });
  return found.length > 0 ? found : null;
}

export const points = { show: false, size: 4, filter: lonely };

/** Selects the drawn series and assigns their palette indexes. */
export class Choice {
  constructor() {
    this.places = new Map();
  }

  /** Returns the highest of `peaks` (`[name, peak]`) by name, and the number of omitted ones. */
  of(peaks) {
    const sorted = [...peaks].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
    const names = sorted.slice(0, MOST).map(([name]) => name).sort();
    for (const name of this.places.keys()) if (!names.includes(name)) this.places.delete(name);
    const taken = new Set(this.places.values());
    for (const name of names) {
      if (this.places.has(name)) continue;
      let place = 0;
      while (taken.has(place)) place += 1;
      taken.add(place);
      this.places.set(name, place);
    }
    return { names, more: sorted.length - names.length };
  }
}

/** Legend of a chart. Hidden series are remembered across visits. */
export class Legend {
  constructor(frame, toggled) {
    this.list = frame.legend;
    this.key = `off.${frame.id}`;
    this.off = new Set(JSON.parse(kept.get(this.key) ?? "[]"));
    this.list.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-key]");
      if (!button) return;
      const { key } = button.dataset;
      if (!this.off.delete(key)) this.off.add(key);
      kept.set(this.key, JSON.stringify([...this.off]));
      button.setAttribute("aria-pressed", String(!this.off.has(key)));
      toggled(key, !this.off.has(key));
    });
  }

  shows(name) {
    return !this.off.has(name);
  }

  /** `entries`: name, palette index, and label. */
  show(entries, more) {
    this.buttons = new Map();
    const items = entries.map(({ name, place, label }) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.key = name;
      button.setAttribute("aria-pressed", String(this.shows(name)));
      button.innerHTML = `${swatch(place)}<span></span><b class="num"></b>`;
      button.children[1].textContent = button.children[1].title = visible(label ?? name);
      item.append(button);
      this.buttons.set(name, button);
      return item;
    });
    this.moment = document.createElement("li");
    this.moment.className = "moment num";
    const rest = document.createElement("li");
    rest.className = "rest";
    rest.textContent = more > 0 ? `and ${more} more; filter by name` : "";
    this.list.replaceChildren(...items, rest, this.moment);
  }

  /** Shows the values at a time; `value(name)` returns the text. */
  tell(words, value) {
    for (const [name, button] of this.buttons ?? []) button.lastElementChild.textContent = value(name) ?? MISSING;
    if (this.moment) this.moment.textContent = words;
  }
}
