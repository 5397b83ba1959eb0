// Connection to the server: a websocket, with polling as a fallback. Reports its state: live, stale, disconnected.

import { clock } from "./clock.js";

const POLL_AFTER_FAILURES = 2;
const LONGEST_PAUSE = 30_000;

/**
 * Receives updates of the page.
 * - `where()`: returns the page's `{epoch, tick}`
 * - `take(update)`: applies an update
 * - `stood(state, words)`: receives the state of the connection
 */
export class Connection {
  constructor(root, { where, take, stood }) {
    Object.assign(this, { root, where, take, stood });
    this.failures = 0;
    this.interval = 3000;
    /** Time of the last message (performance.now), and its server time. */
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

  /** Reconnects immediately. */
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
    // A proxy that drops the handshake never responds.
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

  /** Polls every interval until the websocket works again. */
  async poll() {
    this.polling = true;
    while (this.polling) {
      if (!document.hidden) await this.catchUp();
      await new Promise((done) => setTimeout(done, this.interval));
    }
  }

  /** Fetches the changes since the last update; true if the server responded. */
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
    // Only messages of a single tick reveal the tick interval; catch-up messages do not.
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
    // A silent connection may be half-open.
    if (this.connected && silent > 4 * patience) return this.giveUp();
    const answering = this.connected || (this.polling && !this.pollFailed);
    if (!answering && this.failures > 0) this.stood("disconnected", "disconnected");
    else if (late) this.stood("stale", this.heardTs > 0 ? `stale since ${clock(this.heardTs)}` : "waiting for data");
    else if (!answering) this.stood("connecting", "connecting");
    else this.stood("live", this.connected ? "live" : "live, polling");
  }
}
