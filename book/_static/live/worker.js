// Finds and re-ranks passages away from the page's own thread. It is sent queries, and sends back how
// far loading is, then the candidates, the score of each as it comes, and the end.

import { BM25 } from "./bm25.js";

const folder = new URL("data/", import.meta.url);
let loading;

onmessage = async ({ data: query }) => {
  try {
    loading ??= load();
    const engine = await loading;
    await score(engine, query, find(engine, query));
  } catch (error) {
    loading = undefined; // a reader who is online again asks again
    postMessage({ kind: "error", text: String(error?.message ?? error) });
  }
};

async function load() {
  const about = await (await got("about.json")).json();
  const total = Object.values(about.files).reduce((sum, bytes) => sum + bytes, 0);
  let loaded = 0;
  const arrived = (bytes) => postMessage({ kind: "loading", loaded: (loaded += bytes), total });
  const files = Object.keys(about.files).map((name) => unpacked(name, arrived));
  const [runtime, model, tokenizer, passages] = await Promise.all(files);
  const parsed = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
  const ort = await import(new URL("ort.wasm.min.mjs", folder));
  const { Tokenizer } = await import(new URL("tokenizers.min.mjs", folder));
  ort.env.wasm.numThreads = 1; // more would need headers that a static host does not send
  ort.env.wasm.wasmPaths = folder.href;
  ort.env.wasm.wasmBinary = runtime;
  const texts = parsed(passages);
  return {
    about, ort, texts,
    bm25: new BM25(texts.map(([, text]) => text), about.stop_words),
    session: await ort.InferenceSession.create(model),
    tokenizer: new Tokenizer(parsed(tokenizer), {}),
  };
}

/** Asks the server whether its file is still the one that is kept: all must be of one build. */
async function got(name) {
  const response = await fetch(new URL(name, folder), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

/** A gzipped file's content, whether or not the server has unpacked it on the way. */
async function unpacked(name, arrived) {
  const chunks = [];
  for (const reader = (await got(name)).body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    arrived(value.length);
    chunks.push(value);
  }
  const blob = new Blob(chunks);
  const packed = chunks[0][0] === 0x1f && chunks[0][1] === 0x8b;
  const stream = blob.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await (packed ? new Response(stream) : blob).arrayBuffer());
}

function find({ about, bm25, texts }, query) {
  const started = performance.now();
  const found = bm25.search(query, about.depth);
  const candidates = found.map(({ row, score }) => {
    const [name, text] = texts[row];
    return { name, text, bm25: score };
  });
  const ms = performance.now() - started;
  postMessage({ kind: "candidates", query, candidates, ms, searched: texts.length });
  return candidates;
}

async function score(engine, query, candidates) {
  const started = performance.now();
  for (const [place, { text }] of candidates.entries()) {
    postMessage({ kind: "score", place, score: await scoreOf(engine, query, text) });
  }
  postMessage({ kind: "done", ms: performance.now() - started });
}

/** The student's score of one pair; alone in its batch, so that no other pair can change it. */
async function scoreOf({ about, ort, session, tokenizer }, query, passage) {
  const ids = (text, most) =>
    tokenizer.encode(text, { add_special_tokens: false }).ids.slice(0, most);
  const { before, between, after, segments } = about.template;
  const first = [...before, ...ids(query, about.query_tokens), ...between];
  const second = [...ids(passage, about.passage_tokens), ...after];
  const tensor = (values) =>
    new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const inputs = {
    input_ids: tensor([...first, ...second]),
    attention_mask: tensor([...first, ...second].fill(1)),
    token_type_ids: tensor([
      ...first.map(() => segments[0]), ...second.map(() => segments[1]),
    ]),
  };
  const asked = session.inputNames.map((name) => [name, inputs[name]]);
  return (await session.run(Object.fromEntries(asked))).logits.data[0];
}
