// The way to the server: a websocket, and polling where websockets do not get through. Says how
// things stand: live, stale, disconnected.

import { clock } from "./clock.js";

const POLL_AFTER_FAILURES = 2;
const LONGEST_PAUSE = 30_000;

/**
 * Keeps the page up.
 * - `where()`: what the page has, `{epoch, tick}`
 * - `take(update)`: takes in an update
 * - `stood(state, words)`: how the connection stands
 */
export class Connection {
  constructor(root, { where, take, stood }) {
    Object.assign(this, { root, where, take, stood });
    this.failures = 0;
    this.interval = 3000;
    /** When a message last came (performance.now), and its server time. */
    this.heardAt = null;
    this.heardTs = null;
    this.polling = false;
    this.connected = false;
    this.pollFailed = false;
  }

  start(ts) {
    this.heardAt = performance.now();
    this.heardTs = ts;
    this.open();
    setInterval(() => this.watch(), 1000);
    addEventListener("online", () => this.hurry());
    addEventListener("pagehide", () => this.socket?.close());
    addEventListener("pageshow", (event) => event.persisted && this.hurry());
  }

  /** Tries again at once. */
  hurry() {
    if (this.socket) return;
    clearTimeout(this.retry);
    this.open();
  }

  open() {
    const { epoch, tick } = this.where();
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    let socket;
    try {
      socket = new WebSocket(`${scheme}//${location.host}${this.root}/live/ws?epoch=${epoch}&tick=${tick}`);
    } catch {
      this.lost();
      return;
    }
    this.socket = socket;
    socket.onopen = () => {
      this.connected = true;
      this.heardAt = performance.now();
    };
    socket.onmessage = (event) => {
      this.failures = 0;
      this.polling = false;
      this.heard(JSON.parse(event.data));
    };
    socket.onclose = () => {
      if (this.socket === socket) this.lost();
    };
    // A proxy that swallows the handshake never answers.
    setTimeout(() => socket.readyState === WebSocket.CONNECTING && socket.close(), 8000);
  }

  giveUp() {
    const { socket } = this;
    this.socket = null;
    socket.close();
    this.lost();
  }

  lost() {
    this.socket = null;
    this.connected = false;
    this.failures += 1;
    const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** Math.min(this.failures, 10));
    this.retry = setTimeout(() => this.open(), pause * (0.5 + Math.random() / 2));
    if (this.failures >= POLL_AFTER_FAILURES && !this.polling) this.poll();
    this.watch();
  }

  /** Asks every interval until the websocket works again. */
  async poll() {
    this.polling = true;
    while (this.polling) {
      if (!document.hidden) await this.catchUp();
      await new Promise((done) => setTimeout(done, this.interval));
    }
  }

  /** Fetches what changed since; true if the server answered. */
  async catchUp() {
    const { epoch, tick } = this.where();
    try {
      const answer = await fetch(`${this.root}/live/updates?epoch=${epoch}&tick=${tick}`, { cache: "no-store", signal: AbortSignal.timeout(8000) });
      if (!answer.ok) throw new Error(answer.statusText);
      this.pollFailed = false;
      if (answer.status === 204) return true;
      this.heard(await answer.json());
      return true;
    } catch {
      this.pollFailed = true;
      this.watch();
      return false;
    }
  }

  heard(update) {
    if (update.type !== "update") return;
    const step = update.ts - (this.heardTs ?? update.ts);
    // Messages of one tick tell how often ticks come; those that catch up do not.
    if (update.from !== undefined && step > 0.2 && step < 60) this.interval = Math.max(1000, 0.7 * this.interval + 300 * step);
    this.heardAt = performance.now();
    this.heardTs = update.ts;
    this.take(update);
    this.watch();
  }

  watch() {
    const silent = performance.now() - this.heardAt;
    const patience = 3 * this.interval + 1000;
    const late = silent > patience;
    // A connection over which nothing comes any more may be one that only this side believes in.
    if (this.connected && silent > 4 * patience) return this.giveUp();
    const answering = this.connected || (this.polling && !this.pollFailed);
    if (!answering && this.failures > 0) this.stood("disconnected", "disconnected");
    else if (late) this.stood("stale", this.heardTs > 0 ? `stale since ${clock(this.heardTs)}` : "waiting for data");
    else if (!answering) this.stood("connecting", "connecting");
    else this.stood("live", this.connected ? "live" : "live, polling");
  }
}
