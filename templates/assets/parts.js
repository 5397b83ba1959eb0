// Server-rendered parts: summary, incidents, events, and the current state of a stream or worker type.

import { element, isOver } from "./answers.js";
import { wordTimes } from "./clock.js";
import { apply } from "./fragments.js";
import { query, range } from "./range.js";

const { root } = document.body.dataset;
const PARTS = { summary: "summary", incidents: "incidents", events: "past-events" };
/** Refresh interval of the current state, milliseconds. */
const NOW_EVERY = 3000;

/** Replaces the element with this ID by the server's element. */
function put(id, html) {
  apply({ set: { [id]: html } });
}

/** Loads all parts of the range; `of`: stream or worker type. */
export function loadParts(of, moved) {
  const about = of === undefined ? "" : `&worker=${encodeURIComponent(of)}`;
  for (const [part, id] of Object.entries(PARTS)) {
    const shown = document.getElementById(id);
    if (!shown) continue;
    if (moved) shown.dataset.state = "loading";
    load(part, id, about);
  }
  const { since, until } = range();
  for (const link of document.querySelectorAll("[data-csv]")) {
    const { csv } = link.dataset;
    link.setAttribute("href", `${root}${csv}${csv.includes("?") ? "&" : "?"}since=${since}&until=${until}${about}&format=csv`);
  }
}

async function load(part, id, about) {
  try {
    put(id, await element(`/history/parts/${part}?${query()}${about}`));
  } catch (error) {
    if (isOver(error)) return;
    const shown = document.getElementById(id);
    // Only a part with data can be stale.
    const stale = !["loading", "failed"].includes(shown.dataset.state);
    shown.dataset.state = stale ? "stale" : "failed";
    let note = shown.querySelector(".note");
    if (!note) {
      note = document.createElement("p");
      shown.prepend(note);
    }
    note.className = "note";
    note.dataset.level = "critical";
    note.hidden = false;
    note.textContent = `${stale ? "Out of date" : "Cannot load"}: ${error.message}`;
  }
}

/** Keeps the current state of a stream or worker type up to date. */
export function startNow() {
  const address = new URL(location.href);
  for (const edge of ["from", "to"]) address.searchParams.delete(edge);
  address.searchParams.set("part", "now");
  let last = "";
  const ask = async () => {
    if (document.hidden) return;
    const shown = document.getElementById("now");
    try {
      const reply = await fetch(address.pathname + address.search, { cache: "no-store", signal: AbortSignal.timeout(8000) });
      if (reply.status === 404) throw new Error("no longer exists");
      if (!reply.ok) throw new Error(reply.statusText);
      const html = await reply.text();
      if (html !== last) put("now", html);
      last = html;
      document.getElementById("now").removeAttribute("data-late");
    } catch {
      shown.dataset.late = "";
    }
  };
  setInterval(ask, NOW_EVERY);
  setInterval(() => document.hidden || wordTimes(document.getElementById("now")), 1000);
}
