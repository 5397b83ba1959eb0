// Event marks on all charts: crashes, losses, task failures, scaling, alerts, and outages of data sources. Each kind
// can be hidden.

import { answer, isOver } from "./answers.js";
import { colour, faint } from "./palette.js";
import { kept } from "./shell.js";

/** Kinds with shape and colour. */
export const KINDS = {
  crash: { color: "--critical", shape: "cross" },
  lost: { color: "--warning", shape: "triangle" },
  failures: { color: "--warning", shape: "wedge" },
  alert: { color: "--warning", shape: "diamond" },
  source: { color: "--unknown", shape: "square" },
  scale: { color: "--muted", shape: "tick" },
};
/** Maximum number of marked events; the newest are drawn. */
const MOST = 2000;

const off = new Set(JSON.parse(kept.get("marks.off") ?? "[]"));
let events = [];

/** Returns the kind of an event; null if it is not marked. */
function kindOf({ type, payload, severity }) {
  if (type === "scale_down" && payload?.kind === "crashed") return "crash";
  if (type === "scale_up" || type === "scale_down") return "scale";
  if (type === "alert") return severity === "info" ? null : "alert";
  if (type === "source_down" || type === "source_up") return "source";
  if (type === "consumers_lost" || type === "consumer_hung" || type === "left_with_work") return "lost";
  if (type === "task_failures") return "failures";
  return null;
}

/** Loads the events of a range. Returns whether there may be more than are marked. */
export async function loadMarks(range, of) {
  const ask = (about) => answer(`/api/historical/events?since=${range.since}&until=${range.until}&limit=${MOST}${about}`);
  // Outages of data sources concern every worker type.
  const asked = of === undefined ? [""] : [`&worker=${encodeURIComponent(of)}`, "&type=source_down", "&type=source_up"];
  try {
    const found = (await Promise.all(asked.map(ask))).flatMap((reply) => reply.events);
    events = found.map((event) => ({ ...event, kind: kindOf(event) })).filter(({ kind }) => kind).sort((a, b) => a.ts - b.ts);
    return found.length >= MOST;
  } catch (error) {
    if (!isOver(error)) events = [];
    throw error;
  }
}

/** Returns the marks of one worker type, or of all. Outages of data sources always count. */
export const marksOf = (of) => events.filter(({ kind, worker }) => !off.has(kind) && (of === undefined || worker === of || kind === "source"));

/** Draws a shape around a point. */
export function shape(context, kind, x, y, size) {
  const { shape: which } = KINDS[kind];
  context.beginPath();
  if (which === "cross") {
    context.moveTo(x - size, y - size);
    context.lineTo(x + size, y + size);
    context.moveTo(x + size, y - size);
    context.lineTo(x - size, y + size);
    context.lineWidth = size * 0.7;
    context.stroke();
    return;
  }
  if (which === "triangle") for (const [dx, dy] of [[0, -1], [1, 0.8], [-1, 0.8]]) context.lineTo(x + dx * size, y + dy * size);
  else if (which === "wedge") for (const [dx, dy] of [[0, 1], [1, -0.8], [-1, -0.8]]) context.lineTo(x + dx * size, y + dy * size);
  else if (which === "diamond") for (const [dx, dy] of [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]]) context.lineTo(x + dx * size, y + dy * size);
  else if (which === "square") context.rect(x - size * 0.8, y - size * 0.8, size * 1.6, size * 1.6);
  else context.rect(x - 1, y - size, 2, size * 2);
  context.fill();
}

/** Draws the marks on a chart. */
export function drawMarks(u, of) {
  const { ctx, bbox } = u;
  const dpr = devicePixelRatio || 1;
  const at = (unix) => Math.round(u.valToPos(unix, "x", true));
  const drawn = new Set();
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, 0, bbox.width, bbox.top + bbox.height);
  ctx.clip();
  const marks = marksOf(of);
  shadeAbsences(u, marks);
  for (const { kind, ts } of marks) {
    const x = at(ts);
    // Overlapping marks are drawn once.
    const here = `${kind} ${Math.round(x / (3 * dpr))}`;
    if (drawn.has(here)) continue;
    drawn.add(here);
    const paint = colour(KINDS[kind].color);
    ctx.fillStyle = ctx.strokeStyle = paint;
    if (kind === "scale") {
      ctx.fillStyle = faint(paint, 0.55);
      ctx.fillRect(x - dpr / 2, bbox.top + bbox.height - 5 * dpr, dpr, 5 * dpr);
      continue;
    }
    ctx.fillStyle = faint(paint, kind === "crash" ? 0.75 : 0.4);
    ctx.fillRect(x - dpr / 2, bbox.top, dpr, bbox.height);
    ctx.fillStyle = paint;
    shape(ctx, kind, x, 4 * dpr, 3 * dpr);
  }
  ctx.restore();
}

/** Shades outages of data sources, in which nothing was measured. */
function shadeAbsences(u, marks) {
  const { ctx, bbox } = u;
  const down = new Map();
  const shade = (since, until) => {
    const [left, right] = [u.valToPos(since, "x", true), u.valToPos(until, "x", true)];
    ctx.fillStyle = faint(colour("--unknown"), 0.14);
    ctx.fillRect(left, bbox.top, right - left, bbox.height);
  };
  for (const { type, ts, worker, payload } of marks) {
    if (type === "source_down") down.set(worker, ts);
    if (type === "source_up") {
      const away = payload?.away_sec;
      shade(down.get(worker) ?? (away > 0 ? ts - away : u.scales.x.min), ts);
      down.delete(worker);
    }
  }
  for (const since of down.values()) shade(since, u.scales.x.max);
}

/** Creates the switches; `then` is called when one is used. */
export function startMarks(then) {
  const field = document.getElementById("marks");
  for (const box of field.querySelectorAll("input")) {
    const { kind } = box.dataset;
    box.checked = !off.has(kind);
    box.addEventListener("change", () => {
      if (box.checked) off.delete(kind);
      else off.add(kind);
      kept.set("marks.off", JSON.stringify([...off]));
      then();
    });
  }
  field.disabled = false;
}
