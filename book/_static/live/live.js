// The page "Try it": takes a query, shows what worker.js finds, and moves each passage to its new place.
// Whatever comes from a passage or a query is set as text, never as HTML.

const page = document.getElementById("rdl-live");
const part = (name) => page.querySelector(`[data-part="${name}"]`);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const arrows = { up: "▲", down: "▼", same: "=" };
let worker;
let shown = [];

if (page?.dataset.ready !== undefined) start(); // a build without make_live has no such part

function start() {
  if (typeof WebAssembly === "undefined" || typeof DecompressionStream === "undefined") {
    say("This browser cannot run the model. The example below was computed when the book was built.");
    return;
  }
  part("ask").hidden = false;
  part("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(part("query").value.trim());
  });
  for (const button of page.querySelectorAll("[data-query]")) {
    button.addEventListener("click", () => {
      part("query").value = button.dataset.query;
      ask(button.dataset.query);
    });
  }
  for (const choice of page.querySelectorAll('[name="rdl-order"]')) {
    choice.addEventListener("change", () => arrange(choice.value));
  }
}

function ask(query) {
  if (!query || part("answer").getAttribute("aria-busy") === "true") return;
  worker ??= new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => receive[data.kind](data);
  worker.onerror = () => receive.error({ text: "a script did not load" });
  busy(true);
  say("Loading …");
  worker.postMessage(query);
}

const receive = {
  loading({ loaded, total }) {
    const done = Math.min(loaded, total);
    part("progress").hidden = false;
    part("progress").value = done / total;
    part("loaded").textContent = `${(done / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`;
  },
  candidates({ query, candidates, ms, searched }) {
    part("progress").hidden = true;
    part("loaded").textContent = "";
    const button = [...page.querySelectorAll("[data-query]")].find((b) => b.dataset.query === query);
    const own = button?.dataset.answer;
    part("asked").textContent = query;
    shown = candidates.map((one, place) => row(one, place, one.name === own));
    part("results").replaceChildren(...shown.map(({ element }) => element));
    part("answer").dataset.own = own ?? "";
    part("first-ms").textContent = `${ms.toFixed(0)} ms for ${searched.toLocaleString("en")} passages`;
    part("second-ms").textContent = "";
    part("orders").hidden = true;
    say(candidates.length ? "Scoring …" : "No passage shares a word with this query.");
  },
  score({ place, score }) {
    Object.assign(shown[place], { score });
    part("second-ms").textContent = `${place + 1} of ${shown.length} passages`;
  },
  done({ ms }) {
    busy(false);
    if (!shown.length) return;
    part("second-ms").textContent =
      `${(ms / 1000).toFixed(1)} s for ${shown.length} passages on this device`;
    finish();
  },
  error({ text }) {
    busy(false);
    part("progress").hidden = true;
    part("loaded").textContent = "";
    say(`The model could not be loaded: ${text}.`);
  },
};

/** Ranks are by score; equal scores stay in BM25's order. */
function finish() {
  const ranked = [...shown].sort((one, other) => other.score - one.score || one.place - other.place);
  const [best, worst] = [ranked[0].score, ranked.at(-1).score];
  ranked.forEach((one, rank) => {
    one.rank = rank;
    const moved = Math.sign(one.place - rank);
    const way = moved > 0 ? "up" : moved < 0 ? "down" : "same";
    const { element } = one;
    element.dataset.moved = way;
    const by = Math.abs(one.place - rank);
    text(element, "rank", rank + 1);
    text(element, "moved", by ? `${arrows[way]} ${by}` : arrows[way]);
    text(element, "was", `BM25: ${one.place + 1}`);
    text(element, "score", one.score.toFixed(2));
    element.dataset.score = one.score;
    const share = best > worst ? (one.score - worst) / (best - worst) : 1;
    element.style.setProperty("--rdl-share", share.toFixed(3));
  });
  part("orders").hidden = false;
  part("orders").querySelector('[value="student"]').checked = true;
  arrange("student");
  const own = shown.find(({ own }) => own);
  say(own
    ? `The query's own passage was ${own.place + 1} of ${shown.length} and is now ${own.rank + 1}.`
    : `${shown.length} passages re-ranked; first is now ${ranked[0].name}.`);
}

/** Puts the rows into somebody's order; each slides from its old place to its new one. */
function arrange(order) {
  const key = order === "student" ? "rank" : "place";
  const before = new Map(shown.map((one) => [one, one.element.getBoundingClientRect().top]));
  const rows = [...shown].sort((one, other) => one[key] - other[key]);
  part("results").replaceChildren(...rows.map(({ element }) => element));
  for (const one of still.matches ? [] : rows) {
    const way = before.get(one) - one.element.getBoundingClientRect().top;
    one.element.animate(
      [{ transform: `translateY(${way}px)` }, { transform: "none" }],
      { duration: 700, easing: "cubic-bezier(0.3, 0, 0.2, 1)" },
    );
  }
}

function row({ name, text: passage }, place, own) {
  const element = part("row").content.firstElementChild.cloneNode(true);
  element.classList.toggle("rdl-own", own);
  text(element, "rank", place + 1);
  const parts = name.split(/(?<=\.)/).flatMap((one) => [one, document.createElement("wbr")]);
  element.querySelector('[data-part="name"]').replaceChildren(...parts);
  text(element, "passage", passage);
  return { element, name, place, own };
}

function text(element, name, value) {
  element.querySelector(`[data-part="${name}"]`).textContent = value;
}

function busy(yes) {
  part("answer").setAttribute("aria-busy", yes);
  page.classList.toggle("rdl-busy", yes);
}

function say(words) {
  part("status").textContent = words;
}
