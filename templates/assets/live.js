// Live page: applies updates to the server-rendered page.

import { duration, heard, serverNow, wordTimes } from "./clock.js";
import { Connection } from "./connection.js";
import { draw, startDepths, takeColumns } from "./depths.js";
import { apply } from "./fragments.js";
import { startShell } from "./shell.js";
import { clearFilter, focusFilter, settle, startTable } from "./table.js";

const { dataset } = document.getElementById("live");
const { root, assets } = document.body.dataset;
const shown = { epoch: Number(dataset.epoch), tick: Number(dataset.tick), ts: Number(dataset.ts), readAt: Number(dataset.readAt), title: document.title };
const sign = document.getElementById("connection");
const age = document.getElementById("age");
/** Whether an update was not applied, because the tab is hidden or a message is missing. */
let behind = false;
let lost = false;

/** Shows problems in the title and the icon of the tab. */
function titleTab() {
  const title = lost ? `✕ ${shown.title.replace(/^✕ /, "")}` : shown.title;
  if (document.title !== title) document.title = title;
  const picture = `${assets}/${lost || title.startsWith("⚠") ? "favicon-trouble.svg" : "favicon.svg"}`;
  const icon = document.querySelector('link[rel="icon"]');
  if (icon.getAttribute("href") !== picture) icon.setAttribute("href", picture);
}

const connection = new Connection(root, {
  where: () => shown,
  take,
  stood(state, words) {
    lost = state === "stale" || state === "disconnected";
    // The connection works, but a data source is unreachable for the monitor.
    if (state === "live" && shown.readAt < shown.ts) [state, words] = ["stale", "data stale"];
    sign.dataset.state = state;
    const word = document.getElementById("connection-word");
    if (word.textContent !== words) word.textContent = words;
    const shape = { live: "fine", connecting: "unknown" }[state] ?? "critical";
    sign.querySelector("use").setAttribute("href", `#s-${shape}`);
    titleTab();
  },
});

function take(update) {
  heard(update.ts);
  const whole = update.from === undefined;
  // Differences of another run of the monitor do not apply to this page.
  const foreign = !whole && update.epoch !== shown.epoch;
  if (!whole && !foreign && update.tick <= shown.tick) return;
  if (update.title) {
    shown.title = update.title;
    titleTab();
  }
  // A hidden tab keeps its title up to date and catches up when it becomes visible.
  if (document.hidden) {
    behind = true;
    return;
  }
  if (foreign || (!whole && update.from > shown.tick)) {
    catchUp();
    return;
  }
  // A new version of the monitor may have other scripts.
  if (whole && update.assets && !assets.endsWith(update.assets)) {
    location.reload();
    return;
  }
  const first = shown.tick === 0;
  Object.assign(shown, { epoch: update.epoch, tick: update.tick, ts: update.ts, readAt: update.read_at ?? update.ts });
  apply(update);
  if (update.chart) takeColumns(update.chart);
  draw();
  settle(update);
  if (first) wordTimes(document);
}

async function catchUp() {
  behind = false;
  await connection.catchUp();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  connection.hurry();
  if (behind) catchUp();
});

setInterval(() => {
  if (document.hidden) return;
  wordTimes(document);
  age.textContent = shown.ts > 0 ? duration(Math.max(0, serverNow() - shown.readAt)) : "";
}, 1000);

startShell({
  "/": focusFilter,
  r() {
    connection.hurry();
    catchUp();
  },
  Escape: clearFilter,
});
heard(shown.ts);
wordTimes(document);
startTable();
startDepths();
sign.hidden = false;
connection.start(shown.ts);
