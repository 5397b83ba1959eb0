// Timeline: a lane per kind of event; events near the pointer are described below.

import { isOver } from "./answers.js";
import { visible } from "./names.js";
import { KINDS, loadMarks, marksOf, shape } from "./marks.js";
import { colour } from "./palette.js";
import { drawAgain, moment, plot } from "./plot.js";

const LANES = Object.keys(KINDS);
const SHORT = { crash: "crash", lost: "lost", failures: "failed", alert: "alert", source: "source", scale: "scale" };
/** Maximum distance of an event from the pointer, pixels. */
const NEAR = 8;

export class Timeline {
  constructor(section, of) {
    Object.assign(this, { section, of });
    this.host = section.querySelector(".drawing");
    this.told = section.querySelector(".told");
  }

  async load(range, moved) {
    this.range = range;
    if (moved) {
      this.section.dataset.state = "loading";
      this.told.textContent = "";
    }
    try {
      const cut = await loadMarks(range, this.of);
      if (this.range !== range) return;
      this.rest = cut ? "Only the newest 2,000 events of this time range are shown." : "";
      this.section.dataset.state = "ready";
    } catch (error) {
      if (isOver(error) || this.range !== range) return;
      this.rest = `Cannot load events: ${error.message}`;
      this.section.dataset.state = "failed";
    }
    this.redraw();
    drawAgain();
  }

  redraw() {
    if (!this.range || this.section.dataset.state === "loading") return;
    const marks = marksOf(this.of);
    const quiet = this.rest || (marks.length === 0 ? "No events in this time range." : "");
    this.told.textContent = quiet;
    const lane = (u, kind) => u.bbox.top + ((LANES.indexOf(kind) + 0.5) * u.bbox.height) / LANES.length;
    plot(this.host, {
      data: [[this.range.since, this.range.until], [null, null]],
      series: [{ points: { show: false } }],
      range: this.range,
      of: null,
      top: () => 1,
      quietAxis: true,
      paint: (u) => {
        const { ctx, bbox } = u;
        const dpr = devicePixelRatio || 1;
        ctx.save();
        ctx.font = `${11 * dpr}px system-ui, sans-serif`;
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        for (const kind of LANES) {
          const y = lane(u, kind);
          ctx.fillStyle = colour("--muted");
          ctx.fillText(SHORT[kind], bbox.left - 6 * dpr, y);
          ctx.fillStyle = colour("--line");
          ctx.fillRect(bbox.left, y, bbox.width, dpr);
        }
        ctx.rect(bbox.left, 0, bbox.width, u.ctx.canvas.height);
        ctx.clip();
        for (const { kind, ts } of marks) {
          ctx.fillStyle = ctx.strokeStyle = colour(KINDS[kind].color);
          shape(ctx, kind, u.valToPos(ts, "x", true), lane(u, kind), 3.6 * dpr);
        }
        ctx.restore();
      },
      told: (_, at, u) => {
        if (at === null) {
          this.told.textContent = quiet;
          return;
        }
        const near = marks.filter(({ ts }) => Math.abs(u.valToPos(ts, "x") - u.cursor.left) <= NEAR);
        const ranked = near.sort((a, b) => LANES.indexOf(a.kind) - LANES.indexOf(b.kind));
        const words = ranked.slice(0, 3).map(({ ts, worker, detail }) => `${moment(ts, this.range)} ${visible(worker ?? "")} ${visible(detail ?? "")}`);
        this.told.textContent = words.join(" · ") + (near.length > 3 ? ` · and ${near.length - 3} more` : "");
      },
    });
  }
}
