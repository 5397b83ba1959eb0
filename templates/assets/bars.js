// Stacked bar chart: events per bucket, by kind. A bucket without an entry is zero.

import { look } from "./palette.js";
import { moment, plot } from "./plot.js";
import { Choice, Legend, column, timesOf } from "./series.js";

/** Creates the drawing of the query chart. */
export function bars({ empty, absent }) {
  return (frame) => {
    const choice = new Choice();
    const legend = new Legend(frame, () => frame.redraw());
    return {
      draw([answer], range) {
        if (answer.without_queries) {
          legend.show([], 0);
          plot(frame.host, { data: [timesOf(answer)], series: [], range, of: null });
          return absent;
        }
        const times = timesOf(answer);
        const given = Object.entries(answer.series);
        const sum = (points) => points.reduce((all, [, n]) => all + n, 0);
        const { names, more } = choice.of(given.map(([name, points]) => [name, sum(points)]));
        const shown = names.map((name) => ({ name, place: choice.places.get(name), own: column(answer.series[name], answer, times, 1, 0) }));
        legend.show(shown, more);
        // Each bar reaches from zero to its cumulative sum; the highest are painted first.
        const total = new Array(times.length).fill(0);
        const stacked = shown.filter(({ name }) => legend.shows(name)).map(({ place, own }) => ({ place, values: own.map((n, i) => (total[i] += n)) }));
        stacked.reverse();
        const paths = globalThis.uPlot.paths.bars({ size: [0.86, 40], align: 1 });
        const series = stacked.map(({ place }) => {
          const { stroke } = look(place);
          return { fill: stroke, stroke, width: 0, paths, points: { show: false } };
        });
        const chart = plot(frame.host, {
          data: [times, ...stacked.map(({ values }) => values)], series, range,
          told: (at) => {
            const of = (own) => (at === null ? sum(own.map((n) => [0, n])) : own[at]);
            legend.tell(at === null ? "total" : `at ${moment(times[at], range)}`, (name) => String(of(shown.find((one) => one.name === name).own)));
          },
        });
        chart.setCursor({ left: -10, top: -10 });
        return given.length === 0 ? empty : "";
      },
    };
  };
}
