// Line chart: one line per series, limited to the highest ones. The band reaches up to each bucket's maximum, so that
// averaging does not hide spikes.

import { MISSING } from "./figures.js";
import { fits } from "./names.js";
import { faint, look } from "./palette.js";
import { moment, plot } from "./plot.js";
import { Choice, Legend, column, points, timesOf } from "./series.js";

/**
 * Creates the drawing of a chart.
 * - `name(series)`: label of a series; null to hide it
 * - `format`, `top`: see plot.js
 * - `stepped`: values hold until the next one
 * - `empty`: text without data
 * - `words()`: the filter
 * - `of`: subject of the marks
 */
export function lines({ name, format, top, stepped = false, empty, words = () => [], of }) {
  return (frame) => {
    const choice = new Choice();
    let chart = null;
    let shown = [];
    const legend = new Legend(frame, (key, on) => {
      const i = shown.findIndex((one) => one.name === key);
      if (i < 0 || !chart) return;
      chart.batch(() => {
        chart.setSeries(2 * i + 1, { show: on });
        chart.setSeries(2 * i + 2, { show: on });
      });
    });
    return {
      draw(answers, range) {
        const [first] = answers;
        const times = timesOf(first);
        const all = new Map();
        for (const { series } of answers) {
          for (const [key, given] of Object.entries(series)) {
            const called = name(key);
            if (called !== null && given.length > 0 && fits(called, words())) all.set(called, given);
          }
        }
        const peak = (given) => given.reduce((most, point) => Math.max(most, point[3] ?? point[1]), 0);
        const { names, more } = choice.of([...all].map(([key, given]) => [key, peak(given)]));
        shown = names.map((key) => {
          const given = all.get(key);
          const high = given[0].length > 3 ? column(given, first, times, 3) : null;
          return { name: key, place: choice.places.get(key), mean: column(given, first, times, 1), high };
        });
        legend.show(shown, more);
        const data = [times];
        const series = [];
        const bands = [];
        const { stepped: steps, linear } = globalThis.uPlot.paths;
        shown.forEach(({ place, mean, high, name: key }, i) => {
          const line = look(place);
          const paths = stepped ? steps({ align: 1 }) : linear();
          data.push(mean, high ?? mean);
          series.push({ ...line, width: 1.6, show: legend.shows(key), paths, points, spanGaps: false });
          series.push({ stroke: faint(line.stroke, high ? 0.4 : 0), width: 1, show: legend.shows(key), paths, points: { show: false }, spanGaps: false });
          if (high) bands.push({ series: [2 * i + 2, 2 * i + 1], fill: faint(line.stroke, 0.16) });
        });
        chart = plot(frame.host, {
          data, series, bands, range, format, top, of,
          told: (at) => {
            const last = times.length - 1;
            legend.tell(at === null ? "newest" : `at ${moment(times[at], range)}`, (key) => {
              const one = shown.find((s) => s.name === key);
              const i = at ?? (one.mean[last] ?? null) === null ? at ?? last - 1 : last;
              const [mean, high] = [one.mean[i] ?? null, one.high?.[i] ?? null];
              if (mean === null) return MISSING;
              const told = format ? format(mean) : String(Math.round(mean * 10) / 10);
              return high !== null && high > mean * 1.005 + 0.05 ? `${told} (${format ? format(high) : high})` : told;
            });
          },
        });
        chart.setCursor({ left: -10, top: -10 });
        return all.size === 0 ? empty : "";
      },
    };
  };
}
