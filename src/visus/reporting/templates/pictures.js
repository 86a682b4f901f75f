// Images, and what is behind each cell of the confusion matrix. Names and paths come from files: they are only ever set as text.
const MOST_IN_MATRIX = 60, PAGE = 48, LARGEST_CELL = 44, SMALLEST_CELL = 15;

function className(data, index, kind = null) {
  const name = data.classes[index] ?? "none";
  return html("bdi", { class: kind, title: kind && name }, name);
}

function takenFor(data, truth, predicted) {
  return [className(data, truth), " taken for ", className(data, predicted)];
}

function pathName(path) {
  return html("span", { class: "path", title: path }, html("bdi", {}, path));
}

function picture(data, address, text) {
  if (address === undefined || address === null) return html("span", { class: "small" }, "no picture");
  return html("img", { src: data.pictures[address], alt: text, loading: "lazy", class: data.pictures[address].startsWith("data:image/png") ? "pixels" : null });
}

/** A row of the data: [path, true, predicted, confidence, probability of the true class, picture]. */
function card(data, [path, truth, predicted, confidence, likely, address]) {
  const sure = confidence === null ? "no probability" : `${formats.percent(confidence)} sure`;
  const words = truth === predicted ? [className(data, truth, "clip"), sure] : [html("b", {}, className(data, predicted, "clip")), sure, className(data, truth, "clip truth"), likely === null ? "" : `the truth, ${formats.percent(likely)}`];
  const frame = data.pictures.length ? html("div", { class: "frame" }, picture(data, address, `${path}: ${data.classes[truth]}, predicted ${data.classes[predicted]}`)) : null;
  const look = Object.hasOwn(data.looks, path) && truth !== predicted ? html("button", { class: "link", type: "button", "aria-label": `look closer at ${path}`, onclick: () => openLook(data, path, truth, predicted) }, "look closer") : null;
  return html("li", {}, frame, ...words, pathName(path), look);
}

/** Show where on an image the model saw what it says, and which training images are most like it there, in the page's dialog. */
function openLook(data, path, truth, predicted) {
  const { seen, nearest } = data.looks[path];
  const map = html("li", { class: "seen" }, picture(data, seen, `what the model saw, and beside it in bright colours what spoke for ${data.classes[predicted]}`), html("span", {}, "What the model saw, and what spoke for ", className(data, predicted)));
  const alike = nearest.map(([other, label, similarity, address]) => html("li", {}, html("div", { class: "frame" }, picture(data, address, `${other}: ${label}`)), html("b", {}, html("bdi", { class: "clip", title: label }, label)), `similarity ${similarity.toFixed(2)}`, pathName(other)));
  openImages(takenFor(data, truth, predicted), `${path}; beside it the images most like it to this model, of ${data.compared.toLocaleString("en")} it was trained on`, [map, ...alike]);
}

function openImages(title, told, cards) {
  const dialog = document.getElementById("images");
  dialog.querySelector("h2").replaceChildren(...title);
  dialog.querySelector("p").textContent = told;
  dialog.querySelector("ul").replaceChildren(...cards);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.querySelector(".button").focus();
}

/** Show the images of one cell in the page's dialog. */
function openCell(data, truth, predicted, count) {
  const images = data.images.filter((row) => row[1] === truth && row[2] === predicted);
  const shown = images.slice(0, 60);
  const title = truth === predicted ? [className(data, truth), ", recognised"] : takenFor(data, truth, predicted);
  const enough = shown.length === count ? `${count} ${count === 1 ? "image" : "images"} of the ${data.part} part` : `${shown.length} of ${count} images of the ${data.part} part${truth === predicted ? ", those it is least sure of" : ""}`;
  const told = data.hasPredictions ? enough : `${count} images; the run has no table of predictions that would name them`;
  openImages(title, told, shown.map((row) => card(data, row)));
}

function confusion(host, data) {
  if (data.classes.length > MOST_IN_MATRIX) return confusionList(host, data);
  const counts = new Map(data.cells.map(([t, p, n]) => [`${t},${p}`, n]));
  const totals = data.classes.map((_, t) => data.classes.reduce((sum, __, p) => sum + (counts.get(`${t},${p}`) || 0), 0));
  const few = data.classes.length <= 12 && data.classes.every((name) => [...name].length <= 4);
  const table = html("table", { class: few ? "matrix few" : "matrix", role: "grid", "aria-label": "Confusion matrix: rows are true classes, columns predicted ones"});
  table.append(html("thead", {}, html("tr", { role: "row" }, html("td", { role: "gridcell", class: "corner" }, html("span", {}, "predicted \u2192"), html("span", {}, "true \u2193")), ...data.classes.map((name) => html("th", { scope: "col", role: "columnheader", title: name }, html("span", {}, html("bdi", {}, name)))))));
  const body = html("tbody");
  data.classes.forEach((name, t) => {
    const row = html("tr", { role: "row" }, html("th", { scope: "row", role: "rowheader", title: name }, html("bdi", {}, name)));
    data.classes.forEach((other, p) => row.append(html("td", { role: "gridcell" }, matrixCell(data, t, p, counts.get(`${t},${p}`) || 0, totals[t]))));
    body.append(row);
  });
  table.append(body);
  const cells = [...table.querySelectorAll(".cell")], width = data.classes.length;
  cells.forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
  table.onkeydown = (event) => {
    const at = cells.indexOf(document.activeElement), step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: width, ArrowUp: -width }[event.key];
    if (at < 0 || !step || !cells[at + step] || (Math.abs(step) === 1 && Math.floor(at / width) !== Math.floor((at + step) / width))) return;
    event.preventDefault();
    cells[at].tabIndex = -1;
    cells[at + step].tabIndex = 0;
    cells[at + step].focus();
  };
  const wrap = html("div", { class: "matrix-wrap" }, table);
  host.replaceChildren(wrap);
  fitMatrix(table, wrap, width);
}

/** Make the cells as large as there is room for; small ones go without their numbers. */
function fitMatrix(table, wrap, width) {
  const set = (side) => { table.style.setProperty("--cell", `${side}px`); table.classList.toggle("numberless", side < 24); return table.offsetWidth - wrap.clientWidth; };
  const over = set(LARGEST_CELL);
  if (over > 0) set(Math.max(SMALLEST_CELL, Math.floor(LARGEST_CELL - over / width)));
}

function matrixCell(data, t, p, count, total) {
  const share = total ? count / total : 0, strength = Math.sqrt(share);
  const colour = t === p ? "--right" : "--wrong";
  const words = `true ${data.classes[t]}, predicted ${data.classes[p]}: ${count} of ${total}`;
  const style = count ? `background:rgb(var(${colour}) / ${(t === p ? 0.1 + 0.62 * strength : 0.25 + 0.47 * strength).toFixed(3)})` : null;
  return html("button", { type: "button", class: count ? "cell" : "cell empty", "aria-label": words, title: words, style, "data-cell": `${t},${p}`, "aria-disabled": count ? null : "true", onclick: () => count && openCell(data, t, p, count) }, count ? String(count) : "");
}

/** Of very many classes: the pairs that are confused most, and those of a class that is asked for. */
function confusionList(host, data) {
  const totals = new Map();
  for (const [t, , n] of data.cells) totals.set(t, (totals.get(t) || 0) + n);
  const pairs = data.cells.filter(([t, p]) => t !== p).sort((a, b) => b[2] - a[2]);
  const body = html("tbody"), search = html("input", { type: "search", "aria-label": "Find a class among the confused pairs", placeholder: "Find a class" });
  const draw = () => {
    const words = search.value.trim().toLocaleLowerCase();
    const found = words ? pairs.filter(([t, p]) => [t, p].some((each) => data.classes[each].toLocaleLowerCase().includes(words))) : pairs;
    body.replaceChildren(...found.slice(0, 40).map(([t, p, n]) => html("tr", {}, html("th", { scope: "row", class: "name" }, className(data, t)), html("td", { class: "text" }, className(data, p)), html("td", {}, html("button", { class: "link", type: "button", "data-cell": `${t},${p}`, onclick: () => openCell(data, t, p, n) }, String(n))), html("td", {}, formats.percent(n / totals.get(t))))));
  };
  search.oninput = draw;
  draw();
  const head = html("tr", {}, ...[["True class", "name"], ["Predicted", "text"], ["Images", null], ["Of the class", null]].map(([name, kind]) => html("th", { scope: "col", class: kind }, name)));
  host.replaceChildren(html("div", { class: "controls" }, search), html("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Confused pairs" }, html("table", {}, html("thead", {}, head), body)));
}

/** The pairs of classes confused most, with images of the mistake and of both classes. */
function pairs(list, data) {
  const totals = new Map();
  for (const [t, , n] of data.cells) totals.set(t, (totals.get(t) || 0) + n);
  const most = data.cells.filter(([t, p]) => t !== p).sort((a, b) => b[2] - a[2]).slice(0, 6);
  list.replaceChildren(...most.map(([t, p, n]) => {
    const images = data.images.filter((row) => row[1] === t && row[2] === p && row[5] !== undefined).slice(0, 5);
    const strip = (addresses, words) => html("span", { class: "strip" }, ...addresses.map((each) => picture(data, each, words)));
    const examples = (index) => (data.examples[data.classes[index]] || []).slice(0, 4);
    const rows = [["mistakes", images.map((row) => row[5]), t], [className(data, t, "clip"), examples(t), t], [className(data, p, "clip"), examples(p), p]].filter(([, addresses]) => addresses.length);
    return html("li", {}, html("h4", {}, ...takenFor(data, t, p)), html("p", { class: "small muted" }, html("button", { class: "link", type: "button", onclick: () => openCell(data, t, p, n) }, `${n} of ${totals.get(t)} images`)), html("dl", {}, ...rows.flatMap(([name, addresses, index]) => [html("dt", {}, name), html("dd", {}, strip(addresses, data.classes[index]))])));
  }));
}

/** The gallery of mistakes with its filter. */
function gallery(root, data) {
  const mistakes = data.images.filter((row) => row[1] !== row[2]), list = root.querySelector(".pictures"), more = root.querySelector(".more");
  const [truth, predicted, order] = root.querySelectorAll("select"), search = root.querySelector("input"), told = root.querySelector("[role=status]");
  const fill = (select, column) => {
    const numbers = new Map();
    mistakes.forEach((row) => numbers.set(row[column], (numbers.get(row[column]) || 0) + 1));
    [...numbers.keys()].sort((a, b) => a - b).forEach((index) => select.append(html("option", { value: index, dir: "auto" }, `${data.classes[index] ?? "none"} (${numbers.get(index)})`)));
  };
  fill(truth, 1);
  fill(predicted, 2);
  const orders = { surest: (a, b) => b[3] - a[3], unsure: (a, b) => a[3] - b[3], path: (a, b) => a[0].localeCompare(b[0], undefined, { numeric: true }) };
  let shown = PAGE;
  const draw = () => {
    const words = search.value.trim().toLocaleLowerCase();
    const found = mistakes.filter((row) => (truth.value === "" || row[1] === Number(truth.value)) && (predicted.value === "" || row[2] === Number(predicted.value)) && row[0].toLocaleLowerCase().includes(words)).sort(orders[order.value]);
    list.replaceChildren(...found.slice(0, shown).map((row) => card(data, row)));
    told.textContent = `${found.length.toLocaleString("en")} of ${data.mistakes.toLocaleString("en")} mistakes`;
    more.hidden = found.length <= shown;
  };
  [truth, predicted, order, search].forEach((each) => each.addEventListener("input", () => { shown = PAGE; draw(); }));
  more.onclick = () => { shown += PAGE; draw(); };
  draw();
}
