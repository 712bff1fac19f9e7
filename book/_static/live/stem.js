// Snowball's English stemmer (Porter2, as in Snowball 3.1) for the words that bm25.js finds: lower
// case, no apostrophes. tests/test_live.py compares it with PyStemmer on every word of the collection.

const UNCHANGED = new Set(["andes", "atlas", "bias", "cosmos", "howe", "news", "sky"]);
const EXCEPTIONS = new Map(Object.entries({
  skis: "ski", skies: "sky", idly: "idl", gently: "gentl", ugly: "ugli", early: "earli",
  only: "onli", singly: "singl",
}));
const REGION = /^[^aeiouy]*[aeiouy]+[^aeiouy]/;
const PREFIX = /^(arsen|commun|emerg|gener|inter|later|organ|past|univers)/;
const SHORT = /[^aeiouy][aeiouy][^aeiouywxY]$|^[aeiouy][^aeiouy]$|past$/;
const STEP_2 = endings({
  tional: "tion", enci: "ence", anci: "ance", abli: "able", entli: "ent", izer: "ize",
  ization: "ize", ational: "ate", ation: "ate", ator: "ate", alism: "al", aliti: "al", alli: "al",
  fulness: "ful", fulli: "ful", ousli: "ous", ousness: "ous", iveness: "ive", iviti: "ive",
  biliti: "ble", bli: "ble", ogist: "og", ogi: "og", lessli: "less", li: "",
});
const STEP_3 = endings({
  tional: "tion", ational: "ate", alize: "al", icate: "ic", iciti: "ic", ical: "ic", ful: "",
  ness: "", ative: "",
});
const STEP_4 = endings(Object.fromEntries(
  ("al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion")
    .split(" ").map((ending) => [ending, ""]),
));

/** The stem of a word. */
export function stem(word) {
  if (UNCHANGED.has(word) || word.length < 3) return word;
  if (EXCEPTIONS.has(word)) return EXCEPTIONS.get(word);
  // A y that is a consonant is written Y.
  word = word.replace(/^y/, "Y").replace(/([aeiouy])y/g, "$1Y");
  const first = (PREFIX.exec(word) ?? REGION.exec(word))?.[0].length ?? word.length;
  const second = first + (REGION.exec(word.slice(first))?.[0].length ?? word.length - first);
  word = plural(word);
  word = past(word, first);
  word = word.replace(/^(.+[^aeiouy])[yY]$/, "$1i");
  word = suffix(word, STEP_2, (ending, before) =>
    before.length >= first
    && (ending !== "ogi" || before.endsWith("l"))
    && (ending !== "li" || /[cdeghkmnrt]$/.test(before)));
  word = suffix(word, STEP_3, (ending, before) =>
    before.length >= (ending === "ative" ? Math.max(first, second) : first));
  word = suffix(word, STEP_4, (ending, before) =>
    before.length >= second && (ending !== "ion" || /[st]$/.test(before)));
  return last(word, first, second).replaceAll("Y", "y");
}

function endings(table) {
  return Object.entries(table).sort(([one], [other]) => other.length - one.length);
}

/** The longest ending decides: where its condition fails, no shorter one is tried. */
function suffix(word, table, holds) {
  for (const [ending, replacement] of table) {
    if (word.endsWith(ending)) {
      const before = word.slice(0, -ending.length);
      return holds(ending, before) ? before + replacement : word;
    }
  }
  return word;
}

function plural(word) {
  if (word.endsWith("sses")) return word.slice(0, -2);
  if (/ie[ds]$/.test(word)) return word.slice(0, word.length > 4 ? -2 : -1);
  if (/(us|ss)$/.test(word)) return word;
  return /[aeiouy].+s$/.test(word) ? word.slice(0, -1) : word;
}

function past(word, first) {
  const ending = /(eedly|ingly|edly|eed|ing|ed)$/.exec(word)?.[0];
  if (!ending) return word;
  let before = word.slice(0, -ending.length);
  if (ending.startsWith("eed")) {
    return before.length < first || /^(succ|proc|exc)$/.test(before) ? word : `${before}ee`;
  }
  if (ending === "ing") {
    if (/^[^aeiouy]y$/.test(before)) return `${before.slice(0, 1)}ie`;
    if (/^(even|cann|inn|earr|herr|out)$/.test(before)) return word;
  }
  if (!/[aeiouy]/.test(before)) return word;
  if (/(at|bl|iz)$/.test(before)) return `${before}e`;
  if (/(bb|dd|ff|gg|mm|nn|pp|rr|tt)$/.test(before)) {
    return /^[aeo]..$/.test(before) ? before : before.slice(0, -1);
  }
  return before.length === first && SHORT.test(before) ? `${before}e` : before;
}

function last(word, first, second) {
  const before = word.slice(0, -1);
  if (word.endsWith("e")) {
    const gone = before.length >= second || (before.length >= first && !SHORT.test(before));
    return gone ? before : word;
  }
  return word.endsWith("ll") && before.length >= second ? before : word;
}
