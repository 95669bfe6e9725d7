// Fills in the latency from this browser, and keeps the rest of the tables up to date.
// The first request of a measurement opens the connection; the best of the others counts.
"use strict";

const ROUNDS = 4;
const PATIENCE_MS = 5000;
const AT_A_TIME = 4;
const AGAIN_MS = 30000;
const { goodBelow, badAbove, required } = document.body.dataset;

function show(cell, ms) {
  const word = ms < goodBelow ? "good" : ms <= badAbove ? "fair" : "slow";
  cell.className = "ms " + (word === "slow" ? "bad" : word);
  cell.textContent = (ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0)) + " ms";
  const small = document.createElement("small");
  small.textContent = word;
  cell.append(small);
}

function say(cell, text) {
  cell.className = "ms none";
  cell.textContent = text;
}

async function time(url) {
  const started = performance.now();
  await fetch(url + "?t=" + Math.random().toString(36).slice(2), {
    mode: "no-cors",
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  return performance.now() - started;
}

async function measure(row) {
  const cell = row.querySelector("[data-here]");
  if (!cell.dataset.here) {
    cell.dataset.here = "asked";
    say(cell, "…");
  }
  try {
    await time(row.dataset.url);
    let best = Infinity;
    for (let round = 1; round < ROUNDS; round++) {
      best = Math.min(best, await time(row.dataset.url));
    }
    show(cell, best);
    return best;
  } catch {
    // It may be away, or this browser does not trust its certificate.
    say(cell, "no answer");
    return Infinity;
  }
}

async function measureAll() {
  const rows = [...document.querySelectorAll("tr[data-url]")];
  let best = Infinity;
  let name = "";
  const next = async () => {
    for (let row = rows.shift(); row; row = rows.shift()) {
      const ms = await measure(row);
      if (ms < best) {
        best = ms;
        name = row.dataset.title;
      }
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, next));
  const verdict = document.getElementById("nearest");
  if (name) {
    const met = best < required ? "within" : "above";
    const shown = best < 9.95 ? best.toFixed(1) : best.toFixed(0);
    verdict.textContent =
      `Nearest to you: ${name}, ${shown} ms, ${met} the ${required} ms that are required.`;
  }
}

function targets(page) {
  const rows = [...page.querySelectorAll("tr[data-target]")];
  return rows.map((row) => [row.dataset.target, row.dataset.url, row.dataset.title].join(" ")).join("\n");
}

async function refresh() {
  const page = await fetch("/status", { cache: "no-store" });
  if (!page.ok) {
    return;
  }
  const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
  if (targets(fresh) !== targets(document)) {
    // The policy of this page lets only its own targets be asked.
    location.reload();
    return;
  }
  for (const row of document.querySelectorAll("tr[data-target]")) {
    const other = fresh.querySelector(`tr[data-target="${CSS.escape(row.dataset.target)}"]`);
    if (other) {
      for (const part of ["[data-state]", "[data-there]"]) {
        row.querySelector(part).replaceWith(other.querySelector(part));
      }
    }
  }
  document.querySelector("header").replaceWith(fresh.querySelector("header"));
}

async function again() {
  if (!document.hidden) {
    try {
      await refresh();
    } catch {
      // Control is away; what was known stays.
    }
    await measureAll();
  }
  setTimeout(again, AGAIN_MS);
}

measureAll().then(() => setTimeout(again, AGAIN_MS));
