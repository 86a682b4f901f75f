// What makes the page move: charts, sorting, filters and tabs. Everything is drawn when it comes near the window.
const COLOURS = [0, 1, 2, 3, 4, 5, 6].map((each) => `var(--c${each})`);
const DASHES = [null, "7 4", "2 4", "10 3 2 3", "12 5", "5 3", "1 5"];

const waiting = new Set();
addEventListener("beforeprint", () => waiting.forEach((once) => once()));

/** Call `draw` once, when `node` is near the window, or about to be printed. */
function whenNear(node, draw) {
  const once = () => { if (waiting.delete(once)) { observer.disconnect(); draw(); } };
  const observer = new IntersectionObserver((entries) => entries.some((each) => each.isIntersecting) && once(), { rootMargin: "400px" });
  waiting.add(once);
  observer.observe(node);
}

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.onclick = () => {
      const down = head.ariaSort ? head.ariaSort === "ascending" : head.dataset.first === "descending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        // What has no value stays at the end.
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    };
  });
}

function filterRows(input, table) {
  input.addEventListener("input", () => {
    const words = input.value.trim().toLocaleLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.cells[0].textContent.toLocaleLowerCase().includes(words);
    table.classList.toggle("short", !words && table.dataset.long !== undefined);
  });
}

/** The charts of training, of one run or several over one another. */
function training(root, runs) {
  const several = runs.length > 1, group = [];
  const longest = runs.reduce((a, b) => (b.curves.epochs.length > a.curves.epochs.length ? b : a)).curves.epochs;
  const series = (name, phases) => runs.flatMap((run, i) => phases.map((phase) => ({ name: several ? (phases.length > 1 ? `${run.name}, ${phase}` : run.name) : phase === "val" ? "validation" : "training", colour: COLOURS[(several ? i : phase === "val" ? 1 : 0) % 7], dash: several ? DASHES[i % 7] : phase === "val" ? "7 4" : null, y: longest.map((_, at) => run.curves[phase][name][at] ?? null) })));
  const phases = several ? ["val"] : ["train", "val"];
  const specs = {
    accuracy: { series: series("accuracy", phases), format: "percent", zoom: true },
    loss: { series: series("loss", phases), format: "number", mayBeLog: true },
    lr: { series: series("lr", ["train"]), format: "number", steps: true },
    images_per_second: { series: series("images_per_second", ["train"]), format: "count" },
  };
  root.querySelectorAll("[data-chart]").forEach((host) => {
    const spec = specs[host.dataset.chart];
    if (!spec) return;
    const values = spec.series.flatMap((each) => each.y).filter((value) => value !== null);
    if (spec.zoom && values.length) spec.domain = [Math.max(0, Math.floor((Math.min(...values) - 0.02) * 10) / 10), 1];
    const best = several || host.dataset.best === undefined ? null : longest.indexOf(Number(host.dataset.best));
    whenNear(host, () => chart(host, { ...spec, x: longest, xName: "Epoch", mark: best !== null && best >= 0 && spec.zoom ? best : null }, group));
    const list = host.parentElement.querySelector(".legend");
    if (list && spec.series.length > 1) legend(list, spec.series);
  });
}

function evaluation(root, data) {
  const at = (name) => root.querySelector(`[data-chart=${name}]`);
  const bins = data.reliability, curve = data.coverage;
  if (at("reliability") && bins.length) {
    const low = Math.floor(10 * Math.min(...bins.map((each) => Math.min(each.confidence, each.ci95[0])))) / 10;
    const least = Math.min(0.9, Math.floor(10 * Math.min(...bins.map((each) => each.confidence))) / 10);
    whenNear(at("reliability"), () => chart(at("reliability"), { x: bins.map((each) => each.confidence), series: [{ name: "right", colour: COLOURS[0], y: bins.map((each) => each.accuracy) }], whiskers: bins.map((each) => each.ci95), points: true, ideal: true, domain: [low, 1], xDomain: [least, 1], format: "percent", xFormat: "percent", xName: "How sure it is", height: 250, also: (i) => `${bins[i].n} images, interval ${formats.percent(bins[i].ci95[0])} to ${formats.percent(bins[i].ci95[1])}` }));
  }
  if (at("coverage") && curve.length) {
    const low = Math.max(0, Math.floor(20 * Math.min(...curve.map((each) => each.accuracy)) - 0.2) / 20);
    whenNear(at("coverage"), () => chart(at("coverage"), { x: curve.map((each) => each.coverage), series: [{ name: "right", colour: COLOURS[0], y: curve.map((each) => each.accuracy) }], domain: [Math.min(low, 0.95), 1], xDomain: [0, 1], format: "percent", xFormat: "percent", xName: "Answered", height: 250, also: (i) => `answers from ${formats.percent(curve[i].threshold)} sure` }));
  }
}

function setUpRun(article) {
  const island = article.querySelector("script.data");
  if (!island) return;
  const data = JSON.parse(island.textContent);
  training(article, [data]);
  evaluation(article, data);
  article.querySelectorAll("[data-examples]").forEach((cell) => whenNear(cell, () => {
    (data.examples[cell.dataset.examples] || []).forEach((address) => cell.append(picture(data, address, `a training image of ${cell.dataset.examples}`)));
  }));
  article.querySelectorAll("[data-picture]").forEach((place) => whenNear(place, () => place.append(picture(data, place.dataset.picture, place.dataset.words))));
  const matrix = article.querySelector("[data-confusion]"), pairList = article.querySelector(".pairs"), mistakes = article.querySelector(".gallery");
  if (matrix) whenNear(matrix, () => confusion(matrix, data));
  if (pairList) whenNear(pairList, () => pairs(pairList, data));
  if (mistakes) whenNear(mistakes, () => gallery(mistakes, data));
}

function setUp(root) {
  root.querySelectorAll("table.sortable").forEach(sortable);
  root.querySelectorAll("input[data-filters]").forEach((input) => filterRows(input, document.getElementById(input.dataset.filters)));
  root.querySelectorAll("[data-shows-all]").forEach((button) => {
    button.onclick = () => { const table = document.getElementById(button.dataset.showsAll); table.classList.remove("short"); delete table.dataset.long; button.hidden = true; };
  });
  root.querySelectorAll(".run").forEach(setUpRun);
  const overlay = root.querySelector("#compared script.data");
  if (overlay) training(root.querySelector("#compared"), JSON.parse(overlay.textContent));
  tabs(root);
}

function tabs(root) {
  const buttons = [...root.querySelectorAll("[role=tab]")];
  const select = (chosen, focus) => {
    buttons.forEach((each) => {
      const on = each === chosen;
      each.setAttribute("aria-selected", on);
      each.tabIndex = on ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = !on;
    });
    if (focus) chosen.focus();
  };
  buttons.forEach((each, i) => {
    each.onclick = () => select(each);
    each.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) select(buttons[(i + step + buttons.length) % buttons.length], true);
    };
  });
}

document.querySelector("#images .button").onclick = () => document.getElementById("images").close();
document.getElementById("images").onclick = (event) => { if (event.target === event.currentTarget) event.currentTarget.close(); };
setUp(document);
