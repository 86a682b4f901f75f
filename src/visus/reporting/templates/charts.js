// Charts as SVG: they are sharp at any size, follow the page's colours and print. What they show is also in tables.
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function html(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const formats = {
  percent: (value) => `${trim(100 * value, 1)}\u00a0%`,
  number: (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : trim(value, 4)),
  count: (value) => (Math.round(value) + 0).toLocaleString("en"),
};

function trim(value, digits) {
  return (Number(value.toFixed(digits)) + 0).toLocaleString("en", { maximumFractionDigits: digits });
}

/** Round numbers from `low` to `high`, about `wanted` of them, and `least` apart at least. */
function ticks(low, high, wanted, least = 0) {
  const rough = Math.max((high - low) / wanted || 1, least);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

/** Of a logarithmic axis: 1, 2 and 5 times powers of ten, or these alone where that is enough. */
function powers(low, high) {
  const between = (factors) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) found.push(...factors.map((each) => each * 10 ** power));
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  };
  const all = between([1, 2, 5]);
  return all.length > 7 ? between([1]) : all;
}

/**
 * Draw lines into `host`, a `.chart`. `spec`: `x` values, `series` of {name, colour, dash, y}, `format` of y, `xFormat`, `xName`,
 * and optionally `domain` [low, high] of y, `xDomain`, `ideal` (draw y = x), `whiskers` ([low, high] for each x), `points`, `steps`
 * (each value holds half of 1 to both sides of its x), `mark` (an index that is named `markName`). Returns {show(index), hide()}.
 */
function drawChart(host, spec) {
  const values = spec.series.flatMap((each) => each.y).filter((value) => value !== null);
  host.replaceChildren();
  if (!values.length) {
    host.append(html("p", { class: "muted small" }, "No values."));
    return { show() {}, hide() {} };
  }
  const width = Math.max(240, host.clientWidth), height = spec.height || 220;
  const yFormat = formats[spec.format], xFormat = formats[spec.xFormat || "count"];
  let [low, high] = spec.domain || [0, Math.max(...values) * 1.05 || 1];
  const smallest = Math.min(...values), middle = [...values].sort((a, b) => a - b)[values.length >> 1];
  const logarithmic = spec.mayBeLog && smallest > 0 && Math.max(...values) > 20 * middle;
  if (logarithmic) [low, high] = [smallest * 0.9, Math.max(...values) * 1.1];
  const yTicks = logarithmic ? powers(low, high) : ticks(low, high, 5);
  const left = 12 + 7 * Math.max(...yTicks.map((value) => yFormat(value).length)), right = 14, top = 10, bottom = 40;
  const around = spec.steps ? 0.5 : 0;
  const [xLow, xHigh] = spec.xDomain || [spec.x[0] - around, spec.x[spec.x.length - 1] + around];
  const px = (value) => left + (xHigh === xLow ? 0.5 : (value - xLow) / (xHigh - xLow)) * (width - left - right);
  const scaled = (value) => (logarithmic ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const py = (value) => top + (1 - scaled(value)) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
  for (const value of yTicks) {
    drawing.append(svg("line", { class: "grid-line", x1: left, x2: width - right, y1: py(value), y2: py(value) }));
    drawing.append(svg("text", { x: left - 8, y: py(value) + 4, "text-anchor": "end" }, yFormat(value)));
  }
  const xTicks = xHigh === xLow ? [xLow] : ticks(xLow, xHigh, Math.min(8, width / 70), spec.xFormat ? 0 : 1);
  for (const value of xTicks) {
    drawing.append(svg("text", { x: px(value), y: height - bottom + 18, "text-anchor": "middle" }, xFormat(value)));
  }
  drawing.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, spec.xName + (logarithmic ? " (values on a logarithmic axis)" : "")));
  if (spec.ideal) drawing.append(svg("line", { class: "ideal", x1: px(Math.max(xLow, low)), y1: py(Math.max(xLow, low)), x2: px(xHigh), y2: py(xHigh) }));
  (spec.whiskers || []).forEach(([a, b], i) => drawing.append(svg("line", { class: "whisker", x1: px(spec.x[i]), x2: px(spec.x[i]), y1: py(Math.max(a, low)), y2: py(b) })));
  const inside = (value) => Math.min(Math.max(value, low), high);
  for (const each of spec.series) {
    if (!spec.points) drawing.append(svg("path", { class: "curve", d: linePath(spec.x, each.y, px, (value) => py(inside(value)), spec.steps), style: `stroke:${each.colour}`, ...(each.dash ? { "stroke-dasharray": each.dash } : {}) }));
    each.y.forEach((value, i) => {
      const alone = !spec.steps && (each.y[i - 1] ?? null) === null && (each.y[i + 1] ?? null) === null;
      if (value !== null && (spec.points || alone)) drawing.append(svg("circle", { class: "dot", cx: px(spec.x[i]), cy: py(inside(value)), r: spec.points ? 4.5 : 4, style: `fill:${each.colour}` }));
    });
  }
  if (spec.mark !== undefined && spec.mark !== null && spec.series.length) {
    const each = spec.series[spec.series.length - 1], value = each.y[spec.mark];
    if (value !== null && value !== undefined) {
      drawing.append(svg("circle", { cx: px(spec.x[spec.mark]), cy: py(inside(value)), r: 5, fill: "none", style: `stroke:${each.colour}`, "stroke-width": 2 }));
    }
  }
  const cross = svg("g", { visibility: "hidden" }), tip = html("div", { class: "tip", hidden: true });
  drawing.append(cross);
  host.append(drawing, tip);

  const describe = (i) => [`${spec.xName} ${xFormat(spec.x[i])}`, ...spec.series.filter((each) => each.y[i] !== null && each.y[i] !== undefined).map((each) => `${each.name} ${yFormat(each.y[i])}`), ...(spec.also ? [spec.also(i)] : [])];
  function show(i) {
    cross.replaceChildren(svg("line", { class: "cross", x1: px(spec.x[i]), x2: px(spec.x[i]), y1: top, y2: height - bottom }));
    for (const each of spec.series) {
      if (each.y[i] !== null && each.y[i] !== undefined) cross.append(svg("circle", { class: "dot", cx: px(spec.x[i]), cy: py(inside(each.y[i])), r: 5, style: `fill:${each.colour}` }));
    }
    cross.setAttribute("visibility", "visible");
    tip.replaceChildren(...describe(i).flatMap((line, n) => [n ? html("span", {}, line) : html("b", {}, line), html("br")]).slice(0, -1));
    tip.hidden = false;
    const shift = px(spec.x[i]) > width / 2 ? px(spec.x[i]) - tip.offsetWidth - 12 : px(spec.x[i]) + 12;
    tip.style.left = `${Math.max(0, Math.min(shift, width - tip.offsetWidth))}px`;
    host.setAttribute("aria-valuenow", i);
    host.setAttribute("aria-valuetext", describe(i).join(", "));
  }
  function hide() {
    cross.setAttribute("visibility", "hidden");
    tip.hidden = true;
  }
  const nearest = (event) => {
    const x = event.clientX - host.getBoundingClientRect().left;
    return spec.x.reduce((best, value, i) => (Math.abs(px(value) - x) < Math.abs(px(spec.x[best]) - x) ? i : best), 0);
  };
  return { show, hide, nearest, last: spec.x.length - 1, describe };
}

/** The path of a line, or of `steps`. */
function linePath(x, y, px, py, steps) {
  let path = "", pen = "M";
  y.forEach((value, i) => {
    if (value === null) { pen = "M"; return; }
    path += `${pen}${px(x[i] - (steps ? 0.5 : 0)).toFixed(1)} ${py(value).toFixed(1)}`;
    if (steps) path += `H${px(x[i] + 0.5).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

/** Draw `spec` in `host` and let pointer and keys show its values, in all charts of the `group` (an array) at once. */
function chart(host, spec, group = []) {
  let drawn = drawChart(host, spec);
  const member = { show: (i) => i <= drawn.last && drawn.show(i), hide: () => drawn.hide() };
  group.push(member);
  if (drawn.last === undefined) return;
  let at = drawn.last;
  const show = (i) => { at = Math.max(0, Math.min(drawn.last, i)); group.forEach((each) => each.show(at)); };
  const hide = () => group.forEach((each) => each.hide());
  Object.entries({ role: "slider", tabindex: 0, "aria-label": `${host.dataset.label}. Arrow keys read the values`, "aria-valuemin": 0, "aria-valuemax": drawn.last, "aria-valuenow": at, "aria-valuetext": drawn.describe(at).join(", ") }).forEach(([name, value]) => host.setAttribute(name, value));
  host.onpointermove = host.onpointerdown = (event) => show(drawn.nearest(event));
  host.onpointerleave = hide;
  host.onblur = hide;
  host.onkeydown = (event) => {
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: drawn.last }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  };
  let width = host.clientWidth;
  new ResizeObserver(() => {
    if (!host.clientWidth || Math.abs(host.clientWidth - width) < 2) return;
    width = host.clientWidth;
    drawn = drawChart(host, spec);
  }).observe(host);
}

function legend(list, series) {
  list.replaceChildren(...series.map((each) => html("li", {}, svg("svg", { width: 22, height: 8, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 2.5, style: `stroke:${each.colour}`, ...(each.dash ? { "stroke-dasharray": each.dash } : {}) })), html("bdi", {}, each.name))));
}
