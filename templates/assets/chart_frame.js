// Frame of a chart and its states: loading, ready, empty, failed, and stale when a refresh fails. A failure does not
// affect other charts.

import { answer, isOver } from "./answers.js";
import { clock, serverNow } from "./clock.js";

const { root } = document.body.dataset;

export class ChartFrame {
  /** `drawing(frame)` returns `{ draw(answers, range), redraw() }`; `draw` returns a text when there is no data. */
  constructor(section, drawing) {
    this.section = section;
    this.asks = (section.dataset.asks ?? "").split(" ").filter(Boolean);
    this.host = section.querySelector(".drawing");
    this.legend = section.querySelector(".legend");
    this.note = section.querySelector(".note:not(noscript *)");
    this.id = section.dataset.chart;
    this.host.replaceChildren();
    this.drawing = drawing(this);
    this.as = null;
  }

  get title() {
    return this.section.querySelector("h2").textContent;
  }

  /** Loads and draws. `moved`: whether the range changed. */
  async load(range, moved) {
    this.range = range;
    if (moved) {
      this.as = null;
      this.stand("loading");
    }
    const window = `since=${range.since}&until=${range.until}`;
    const paths = this.asks.map((ask) => `${ask}${ask.includes("?") ? "&" : "?"}${window}`);
    let answers;
    try {
      answers = await Promise.all(paths.map(answer));
    } catch (error) {
      if (isOver(error) || this.range !== range) return;
      if (this.as) this.stand("stale", `As of ${clock(this.as)}: ${error.message}`);
      else this.stand("failed", `Cannot load ${this.title}: ${error.message}`);
      return;
    }
    if (this.range !== range) return;
    this.section.querySelectorAll(".csv").forEach((link, i) => link.setAttribute("href", `${root}${paths[i]}&format=csv`));
    this.as = serverNow();
    this.answers = answers;
    this.redraw();
  }

  /** Redraws the same data, after a change of colours or selection. */
  redraw() {
    if (!this.answers || !this.as) return;
    const nothing = this.drawing.draw(this.answers, this.range);
    this.stand(nothing ? "empty" : "ready", nothing);
  }

  stand(state, words = "") {
    this.section.dataset.state = state;
    if (!this.note) return;
    this.note.hidden = !words;
    this.note.textContent = words;
    this.note.toggleAttribute("data-empty", state === "empty" || state === "failed");
    if (state === "failed") this.note.dataset.level = "critical";
    else delete this.note.dataset.level;
  }
}
