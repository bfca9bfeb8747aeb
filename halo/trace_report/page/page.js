"use strict";
// Everything that comes from a trace is put into the page as text: no markup is ever made of it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const ink = color("--ink"), soft = color("--soft"), line = color("--line");
  const CAUSES = [
    ["prompt", "first prefill", "#4c78c9"],
    ["tool_answers", "tool answers", "#e0962e"],
    ["re_prefill", "prefilled again", "#c5453f"],
    ["reasoning", "own tokens", "#4f9d69"],
    ["context_reads", "context reads", "#8a73b8"],
  ];
  const charts = [];

  const number = (value) => {
    if (value === null || value === undefined) return "unknown";
    const size = Math.abs(value);
    if (size >= 1e9) return (value / 1e9).toFixed(2) + "G";
    if (size >= 1e6) return (value / 1e6).toFixed(2) + "M";
    if (size >= 1e4) return (value / 1e3).toFixed(0) + "k";
    return value.toFixed(size < 10 && value % 1 ? 1 : 0);
  };
  const percent = (value) => (100 * value).toFixed(1) + " %";
  // One line without control characters and without what rich-text labels would interpret.
  const label = (text, most = 60) => {
    const clean = String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069{}|]/g, " ");
    return clean.length > most ? clean.slice(0, most - 1) + "…" : clean;
  };
  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const table = (target, header, rows) => {
    const body = make("table"), head = make("tr");
    for (const [name, isText] of header) head.append(make("th", name, isText ? "text" : ""));
    body.append(head);
    for (const cells of rows) {
      const row = make("tr");
      cells.forEach((cell, place) => {
        const field = make("td", undefined, header[place][1] ? "text" : "");
        if (cell instanceof Node) field.append(cell); else field.textContent = cell;
        row.append(field);
      });
      body.append(row);
    }
    target.replaceChildren(body);
  };
  const chart = (id, option) => {
    const target = document.getElementById(id);
    const made = echarts.getInstanceByDom(target) || echarts.init(target, null, { renderer: "canvas" });
    if (!charts.includes(made)) charts.push(made);
    made.setOption({
      animation: false,
      textStyle: { color: ink },
      grid: { left: 56, right: 50, top: 46, bottom: 42, containLabel: false },
      ...option,
    }, true);
    return made;
  };
  const tooltip = (formatter) => ({
    renderMode: "richText", trigger: "axis", confine: true, formatter,
    textStyle: { fontSize: 12 },
  });
  const axis = (extra) => ({
    axisLabel: { color: soft }, axisLine: { lineStyle: { color: line } },
    splitLine: { lineStyle: { color: line } }, nameTextStyle: { color: soft }, ...extra,
  });
  const values = (name) => axis({ type: "value", name, axisLabel: { color: soft, formatter: number } });

  // --- the whole -------------------------------------------------------------------------------
  const byId = (id) => document.getElementById(id);
  const counts = data.counts, totals = data.totals;
  byId("summary").textContent =
    `${counts.traces.toLocaleString()} traces, ${counts.calls.toLocaleString()} model calls, ` +
    `${counts.tool_calls.toLocaleString()} tool calls; ${data.mode} mode`;
  for (const price of data.prices.slice(0, 4)) {
    byId("prices").append(make("p",
      `${label(price.model)} on ${label(price.hardware)}: gamma ${price.gamma.toFixed(6)} (${price.peak}` +
      (price.batch === null ? ")" : `, batch ${price.batch})`), "soft"));
  }
  const card = (title, value, below) => {
    const node = make("div", undefined, "card");
    node.append(make("span", title, "soft"), make("b", value), make("span", below || "", "soft"));
    byId("cards").append(node);
  };
  card("PTE", number(totals.pte), totals.measured === null ? "upper end where cache is unknown" : "");
  card("full", number(totals.full), "every pause evicts");
  card("ideal", number(totals.ideal), "nothing is evicted");
  card("lost to the cache", totals.lost_by_cache === null ? "unknown" : number(totals.lost_by_cache), "prefilled again");
  card("median of a trace", number(data.distribution.all.p50), `p90 ${number(data.distribution.all.p90)}`);
  card("in findings", number(totals.wasted_pte_at_most), percent(totals.pte ? totals.wasted_pte_at_most / totals.pte : 0) + " at most");

  table(byId("patterns"),
    [["pattern", true], ["traces"], ["unknown"], ["findings"], ["PTE"], ["share"], ["paper's rule"]],
    data.patterns.map((each) => [each.title, String(each.traces), String(each.unknown), String(each.findings),
      number(each.pte), percent(each.share), each.paper_rule_traces === null ? "–" : String(each.paper_rule_traces)]));
  table(byId("what-if"), [["scenario", true], ["PTE"], ["change"]],
    data.what_if.map((each) => [label(each.scenario, 80), number(each.pte), percent(each.change)]));
  table(byId("tools"), [["tool", true], ["calls"], ["errors"], ["answer tokens"], ["PTE"], ["a call"]],
    data.tools.slice(0, 30).map((each) => [label(each.name), String(each.calls), String(each.errors),
      number(each.answer_tokens), number(each.pte), number(each.pte_per_call)]));
  table(byId("worst"),
    [["trace", true], ["PTE"], ["turns"], ["tools"], ["peak context"], ["label", true], ["patterns", true]],
    data.worst.map((each, place) => {
      const open = make("button", label(each.id));
      open.type = "button";
      open.addEventListener("click", () => { location.hash = `trace-${place}`; });
      return [open, number(each.pte), String(each.turns), String(each.tool_calls), number(each.peak_context_tokens),
        each.passed === null ? "" : each.passed ? "passed" : "failed", each.patterns.join(", ")];
    }));
  for (const text of data.limits) byId("limits").append(make("li", text));
  if (data.problems.count) {
    byId("problems").hidden = false;
    byId("problem-count").textContent = `${data.problems.count} could not be used; the rest was reported.`;
    for (const each of data.problems.first) byId("problem-list").append(make("li", `${label(each.place, 120)}: ${label(each.text, 300)}`));
  }

  const tools = data.tools.slice(0, 12).reverse();
  chart("tool-chart", {
    tooltip: tooltip((all) => `${label(tools[all[0].dataIndex].name)}\n${number(tools[all[0].dataIndex].pte)} PTE, ${tools[all[0].dataIndex].calls} calls`),
    grid: { left: 130, right: 24, top: 16, bottom: 34 },
    xAxis: values(""),
    yAxis: axis({ type: "category", data: tools.map((each) => label(each.name, 18)) }),
    series: [{ type: "bar", data: tools.map((each) => each.pte), itemStyle: { color: "#e0962e" } }],
  });
  const edges = data.histogram.edges, bins = data.histogram.counts;
  chart("distribution-chart", {
    tooltip: tooltip((all) => `${number(edges[all[0].dataIndex])} to ${number(edges[all[0].dataIndex + 1])} PTE\n${bins[all[0].dataIndex]} traces`),
    xAxis: axis({ type: "category", name: "PTE", nameLocation: "middle", nameGap: 26, data: bins.map((_, place) => number(edges[place])) }),
    yAxis: axis({ type: "value", name: "traces" }),
    series: [{ type: "bar", barCategoryGap: "8%", data: bins, itemStyle: { color: "#4c78c9" } }],
  });
  if (data.distribution.passed || data.distribution.failed) {
    byId("label-section").hidden = false;
    const point = (name) => data.points.filter((each) => each[2] === name).map((each) => [each[0], each[1]]);
    const text = ["passed", "failed"].filter((name) => data.distribution[name]).map((name) => {
      const spread = data.distribution[name];
      return `${name}: ${spread.count} traces, median ${number(spread.p50)} PTE (p10 ${number(spread.p10)}, p90 ${number(spread.p90)})`;
    });
    byId("label-text").textContent = text.join("; ");
    chart("label-chart", {
      tooltip: { renderMode: "richText", trigger: "item", confine: true, formatter: (one) => `${one.seriesName}\n${one.value[0]} turns, ${number(one.value[1])} PTE` },
      legend: { textStyle: { color: ink }, top: 4 },
      xAxis: axis({ type: "value", name: "turns", nameLocation: "middle", nameGap: 26 }),
      yAxis: axis({ type: "log", name: "PTE", axisLabel: { color: soft, formatter: number } }),
      series: [
        { name: "passed", type: "scatter", symbolSize: 6, data: point("passed"), itemStyle: { color: "#4f9d69", opacity: 0.6 } },
        { name: "failed", type: "scatter", symbolSize: 6, symbol: "triangle", data: point("failed"), itemStyle: { color: "#c5453f", opacity: 0.6 } },
      ],
    });
  }

  // --- one trace -------------------------------------------------------------------------------
  const message = (raw) => {
    const node = make("div", undefined, "message");
    const role = raw.role === "tool" && raw.name ? `tool ${label(raw.name)}` : raw.role;
    node.append(make("span", role, "role"));
    let about = `${number(raw.tokens)} tokens`;
    if (raw.carried_pte !== undefined) about += `, ${number(raw.carried_pte)} PTE to the end`;
    if (raw.is_error) about += ", error";
    if (raw.seconds !== null && raw.seconds !== undefined) about += `, ${raw.seconds.toFixed(2)} s`;
    node.append(make("span", about, "soft"));
    if (raw.reasoning_hidden) node.append(make("p", "thinking is hidden", "soft"));
    if (raw.reasoning) { node.append(make("p", "thinking", "soft"), make("pre", raw.reasoning)); }
    if (raw.text) node.append(make("pre", raw.text));
    for (const call of raw.calls || []) {
      const made = make("div", undefined, "call");
      made.append(make("span", `calls ${label(call.name)}`, "role"), make("pre", call.arguments));
      if (call.problem) made.append(make("p", label(call.problem, 200), "warn"));
      node.append(made);
    }
    return node;
  };
  const titles = Object.fromEntries(data.patterns.map((each) => [each.pattern, each.title]));
  const show = (place) => {
    const trace = data.worst[place];
    if (!trace || !trace.turn_list) { byId("trace").hidden = true; return; }
    byId("trace").hidden = false;
    byId("trace-title").textContent = label(trace.id, 120);
    byId("trace-about").textContent =
      `${label(trace.place, 160)}; ${label(trace.model || "no model named")}, priced as ${label(trace.priced_as)}; ` +
      `${number(trace.pte)} PTE (full ${number(trace.pte_full)}, measured ${number(trace.pte_measured)}, ideal ${number(trace.pte_ideal)})`;
    const turns = trace.turn_list;
    const shown = chart("turn-chart", {
      tooltip: tooltip((all) => {
        const turn = turns[all[0].dataIndex];
        const parts = CAUSES.map(([key, name]) => `${name}: ${number(turn.causes[key])}`);
        return [`turn ${all[0].dataIndex + 1}: ${number(turn.pte)} PTE`, ...parts,
          `context ${number(turn.context_tokens)}, decoded ${number(turn.decode_tokens)}, cached ${number(turn.cached_tokens)}`].join("\n");
      }),
      grid: { left: 56, right: 50, top: 64, bottom: 42 },
      legend: { type: "scroll", textStyle: { color: ink }, pageTextStyle: { color: ink }, top: 4 },
      xAxis: axis({ type: "category", name: "turn", nameLocation: "middle", nameGap: 26, data: turns.map((_, i) => String(i + 1)) }),
      yAxis: [values("PTE"), { ...values("context"), splitLine: { show: false } }],
      series: [
        ...CAUSES.map(([key, name, fill]) => ({
          name, type: "bar", stack: "pte", itemStyle: { color: fill }, data: turns.map((turn) => turn.causes[key]),
        })),
        { name: "context", type: "line", yAxisIndex: 1, symbolSize: 4, lineStyle: { color: soft }, itemStyle: { color: soft }, data: turns.map((turn) => turn.context_tokens) },
      ],
    });
    shown.resize();
    const list = byId("turns");
    list.replaceChildren();
    turns.forEach((turn, number_) => {
      const node = make("article", undefined, "turn");
      const head = make("header");
      head.append(make("h3", `turn ${number_ + 1}` + (turn.thread ? ` (${label(turn.thread)})` : "")));
      head.append(make("span", `${number(turn.pte)} PTE`));
      head.append(make("span", `context ${turn.context_tokens.toLocaleString()}, cached ${turn.cached_tokens === null ? "unknown" : turn.cached_tokens.toLocaleString()}, decoded ${turn.decode_tokens.toLocaleString()}` +
        (turn.prompt_origin === "reported" ? "" : ` (${turn.prompt_origin})`) +
        (turn.seconds === null ? "" : `, ${turn.seconds.toFixed(2)} s`), "soft"));
      if (turn.new_segment && number_) head.append(make("span", "new segment", "warn"));
      node.append(head);
      for (const each of turn.inputs) node.append(message(each));
      node.append(message(turn.output));
      for (const finding of trace.findings.filter((each) => each.turn === number_)) {
        const found = make("div", undefined, "finding");
        found.append(make("b", titles[finding.pattern] + (finding.label ? `, ${finding.label}` : "")));
        found.append(make("p", `${label(finding.why, 300)}; ${number(finding.pte)} PTE, confidence ${finding.confidence.toFixed(2)}`));
        if (finding.quote) found.append(make("p", `“${label(finding.quote, 200)}”`, "soft"));
        node.append(found);
      }
      list.append(node);
    });
    const more = Object.entries(trace.unknown).map(([name, why]) => `${titles[name]}: unknown, ${label(why, 120)}`).concat(trace.notes.map((each) => label(each, 200)));
    byId("trace-notes").replaceChildren(...more.map((text) => make("li", text)));
  };
  const open = (scroll) => {
    const found = /^#trace-(\d+)$/.exec(location.hash);
    show(found ? Number(found[1]) : 0);
    if (found && scroll) byId("trace").scrollIntoView();
  };
  addEventListener("hashchange", () => open(true));
  addEventListener("resize", () => charts.forEach((each) => each.resize()));
  open(true);
  document.body.dataset.ready = "yes";
})();
