// The page asks for itself again every other second, and takes the place of what it was when that has changed.
const EVERY = 2000;

async function refresh() {
  const [state, now, machine] = [".live", ".now", ".machine"].map((each) => document.querySelector(each));
  const tell = (text, stale) => { state.textContent = text; state.classList.toggle("stale", stale); };
  try {
    const answer = await fetch(location.pathname, { headers: { "If-None-Match": `"${document.body.dataset.mark}"` } });
    if (answer.status === 200) replacePage(await answer.text());
    if (answer.status === 404) tell("gone; this is what was last there", true);
    else if (answer.ok || answer.status === 304) tell("live", false);
    else tell("cannot be read now", true);
    const told = await fetch("/now" + location.pathname);
    now.textContent = told.ok ? await told.text() : "";
    machine.textContent = await (await fetch("/machine")).text();
  } catch {
    tell("not reached; this is what was last there", true);
    now.textContent = "";
  }
  setTimeout(refresh, EVERY);
}

function replacePage(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const open = [...document.querySelectorAll("main details")].map((each) => each.open);
  waiting.clear();
  document.body.dataset.mark = page.body.dataset.mark;
  document.title = page.title;
  document.getElementById("main").replaceChildren(...page.getElementById("main").childNodes);
  const details = [...document.querySelectorAll("main details")];
  if (details.length === open.length) details.forEach((each, i) => { each.open = open[i]; });
  setUp(document);
}

setTimeout(refresh, EVERY);
