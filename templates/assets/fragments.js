// Applies the server's fragments while preserving focus, scroll position, open and hidden elements.

import { wordTimes } from "./clock.js";

/**
 * Minimum time without a change before a new value is highlighted, milliseconds; a value that changes constantly
 * is not.
 */
const REST = 20_000;
const lastMarked = new WeakMap();

/** Fragments of lists that are not placed yet or were removed. */
let homeless = new Map();

/** Applies `set`, `cells` and `lists` of an update. Returns the new elements. */
export function apply({ set = {}, cells = {}, lists = {} }) {
  const fresh = [];
  homeless = new Map();
  for (const [id, html] of Object.entries(set)) {
    const made = parse(html);
    if (!made) continue;
    fresh.push(made);
    const old = document.getElementById(id);
    if (old) replace(old, made);
    else homeless.set(id, made);
  }
  for (const [id, members] of Object.entries(lists)) arrange(id, members);
  for (const [id, changes] of Object.entries(cells)) {
    const root = document.getElementById(id);
    if (root) for (const [slot, cell] of Object.entries(changes)) setCell(root, slot, cell);
  }
  homeless = new Map();
  return fresh;
}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const made = template.content.firstElementChild;
  if (made) wordTimes(made);
  return made;
}

function replace(old, made) {
  const focus = placeOfFocus(old);
  const open = [...old.querySelectorAll("details")].map((d) => d.open);
  made.querySelectorAll("details").forEach((d, i) => (d.open = open[i] ?? d.open));
  if (isMember(old)) made.hidden = old.hidden;
  const news = old.textContent.trim() !== made.textContent.trim() || old.dataset.level !== made.dataset.level;
  old.replaceWith(made);
  focus?.(made);
  if (news) mark(made);
}

/** The filter may hide list members; other fragments control their own visibility. */
function isMember(element) {
  return "name" in element.dataset;
}

/** Returns how to find the focused element inside `root` again, if it is there. */
function placeOfFocus(root) {
  const focused = document.activeElement;
  if (!root.contains(focused)) return null;
  const reachable = (element) => [...element.querySelectorAll("a[href], button, input, [tabindex]")];
  const place = reachable(root).indexOf(focused);
  return (made) => (reachable(made)[place] ?? made).focus({ preventScroll: true });
}

/** Makes `members` the children of the list, in this order, with minimal moves. */
function arrange(id, members) {
  const list = document.getElementById(id);
  if (!list) return;
  const wanted = new Set(members);
  for (const child of [...list.children]) {
    if (child.id && !wanted.has(child.id)) {
      homeless.set(child.id, child);
      child.remove();
    }
  }
  let before = list.querySelector(":scope > [id]");
  for (const member of members) {
    const element = homeless.get(member) ?? document.getElementById(member);
    if (!element) continue;
    if (element === before) {
      before = before.nextElementSibling;
      continue;
    }
    if (homeless.has(member)) mark(element);
    list.insertBefore(element, before);
  }
}

/** Updates a value: a text, `[text, title, tone, value]`, or a time in Unix seconds. */
function setCell(root, slot, cell) {
  const [text, title, tone, value] = Array.isArray(cell) ? cell : [cell];
  for (const bar of root.querySelectorAll(`[data-bar="${slot}"]`)) {
    bar.dataset.tone = tone ?? "";
    bar.firstElementChild.setAttribute("width", Math.min(100, Math.max(0, value ?? 0)));
  }
  for (const element of root.querySelectorAll(`[data-c="${slot}"]`)) {
    if (typeof text === "number") {
      const time = document.createElement("time");
      time.dateTime = time.title = new Date(text * 1000).toISOString().replace(".000", "");
      time.dataset.since = "";
      element.replaceChildren(time);
      wordTimes(element);
      optional(element, "v", -text);
      element.removeAttribute("title");
      optional(element, "tone", null);
      continue;
    }
    element.textContent = text;
    if (title) element.title = title;
    else element.removeAttribute("title");
    optional(element, "tone", tone);
    optional(element, "v", value);
    if (element.offsetParent) mark(element);
  }
}

function optional(element, name, value) {
  if (value === undefined || value === null || value === "") delete element.dataset[name];
  else element.dataset[name] = value;
}

function mark(element) {
  const now = performance.now();
  const last = lastMarked.get(element);
  lastMarked.set(element, now);
  if (last !== undefined && now - last < REST) return;
  element.classList.add("changed");
  element.addEventListener("animationend", () => element.classList.remove("changed"), { once: true });
}
