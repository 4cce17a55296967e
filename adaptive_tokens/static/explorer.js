// Token explorer: one ES module for Jupyter (render) and for a page without a kernel (mount).
// Text from outside is only ever set as text. No ids, so that explorers do not disturb each other.

const SVG = 'http://www.w3.org/2000/svg';
const CALIBRATING = 'Calibrating';                   // the kernel's word, too
const STEP_MS = 700;                                // of the play button
const DASHES = ['none', '6 3', '2 3', '8 3 2 3', '12 4'];  // of the lines of the first to the fifth model
const MODES = ['Overlay', 'Image', 'Depth'];
const FOCUSABLE = new Set(['button', 'input', 'select', 'summary']);
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const KEY = () => node('p', { class: 'at-facts' }, 'A dot for each block with a score: filled where it reaches the dashed line.');
const HINT = 'Point at a patch, or move over a picture with the arrow keys. Enter keeps the card, Escape closes it.';

// --- elements

function make(namespace, tag, attributes, children) {
  const made = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  if (FOCUSABLE.has(tag) || 'tabindex' in attributes) made.setAttribute('data-lm-suppress-shortcuts', 'true');
  made.append(...children);
  return made;
}
const node = (tag, attributes = {}, ...children) => make(null, tag, attributes, children);
const draw = (tag, attributes = {}, ...children) => make(SVG, tag, attributes, children);
const set = (of, attributes) => { for (const [name, value] of Object.entries(attributes)) of.setAttribute(name, value); };

// --- numbers

const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const bit = (packed, i) => packed[i >> 3] >> (7 - (i & 7)) & 1;
const percent = share => `${Math.round(100 * share)} %`;
const short = value => value && Math.abs(value) < 1e-6 ? 'about 0' : String(Number(value.toPrecision(2)));
const mean = values => values.reduce((a, b) => a + b, 0) / values.length;

function spans(blocks) {  // [1, 2, 3, 5] as '1-3, 5'
  const out = [];
  for (const b of blocks) {
    const last = out[out.length - 1];
    if (last && last[1] === b - 1) last[1] = b;
    else out.push([b, b]);
  }
  return out.map(([a, b]) => a === b ? `${a}` : `${a}-${b}`).join(', ');
}

// What a head gave to a patch at a stage, from 0 to 1; the root, since votes span powers of ten.
function votesIn({ votes }, H, N) {
  const levels = votes ? bytes(votes.levels) : [], stages = votes ? votes.blocks.length : 0;
  return (i, s, h, n) => Math.sqrt(levels[((i * stages + s) * H + h) * N + n] / 255);
}

// What one model did, unpacked: activity, depth, heads, sub-layers and scores by image, block (from 0) and patch.
function unpack(run, { blocks: L, grid }) {
  const N = grid[0] * grid[1], H = run.heads_per_block;
  const [active, heads, sublayers, levels] = [run.active, run.heads, run.sublayers, run.scores.levels].map(bytes);
  const at = (i, l, n) => (i * L + l) * N + n;
  const value = (i, l, n) => {
    const level = levels[at(i, l, n)], { low, high } = run.scores;
    return level === 255 || level === undefined ? null : low[l] + (high[l] - low[l]) * level / 254;
  };
  const blocksOf = (i, n) => [...Array(L).keys()].filter(l => bit(active, at(i, l, n))).map(l => l + 1);
  const depths = i => Array.from({ length: N }, (_, n) => blocksOf(i, n).length);
  const count = (i, l) => { let sum = 0; for (let n = 0; n < N; n++) sum += bit(active, at(i, l, n)); return sum; };
  return { ...run, H, N, L, value, blocksOf, depths, count,
           on: (i, l, n) => bit(active, at(i, l, n)),
           head: (i, l, h) => bit(heads, (i * L + l) * H + h),
           sublayer: (i, l, s) => bit(sublayers, (i * L + l) * 2 + s), vote: votesIn(run, H, N) };
}

// --- pictures

// Outline of the patches that are on: every edge with such a patch on one side only.
function outline(on, rows, columns, w, h) {
  const is = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && on(r * columns + c) ? 1 : 0;
  let d = '';
  for (let r = 0; r <= rows; r++) for (let c = 0; c <= columns; c++) {
    if (is(r, c) !== is(r - 1, c)) d += `M${c * w} ${r * h}h${w}`;
    if (is(r, c) !== is(r, c - 1)) d += `M${c * w} ${r * h}v${h}`;
  }
  return d;
}

function cells(on, rows, columns, w, h) {
  let d = '';
  for (let n = 0; n < rows * columns; n++) if (on(n)) d += `M${n % columns * w} ${Math.floor(n / columns) * h}h${w}v${h}h${-w}z`;
  return d;
}

function depthCells(depths, { grid: [rows, columns], size: [H, W], palette }) {
  const w = W / columns, h = H / rows;
  return depths.flatMap((depth, n) => {
    const x = n % columns * w, y = Math.floor(n / columns) * h, dark = depth < palette.length / 2;
    const number = draw('text', { x: x + w / 2, y: y + h / 2, 'font-size': Math.min(w, h) * .5, fill: dark ? '#fff' : '#000' },
                        String(depth));
    return [draw('rect', { x, y, width: w, height: h, fill: palette[depth] }), number];
  });
}

const sample = run => draw('svg', { class: 'at-sample', viewBox: '0 0 30 10', 'aria-hidden': 'true' },
  draw('path', { d: 'M1 5h28', class: 'at-curve', stroke: run.stroke, 'stroke-dasharray': run.dash }));

// --- one explorer

function render({ model, el }) {
  const data = model.get('data'), [rows, columns] = data.grid, [height, width] = data.size;
  const L = data.blocks, N = rows * columns, w = width / columns, h = height / rows;
  const local = { mode: 'Overlay', hover: null, pinned: false, sort: 'depth', timer: null, head: null };  // head: [run, stage, head]
  let runs = [];
  const get = name => model.get(name);
  const put = (name, value) => { if (get(name) !== value) { model.set(name, value); model.save_changes(); } };
  const shown = () => local.pinned || local.hover === null ? get('token') : local.hover;

  function unpackAll() {
    runs = get('runs').map((run, k) => ({ ...unpack(run, data), dash: DASHES[k],
                                          stroke: run.colour === '#000000' ? 'currentColor' : run.colour }));
  }
  unpackAll();

  // the block: slider, play, live text
  const slider = node('input', { type: 'range', min: 1, max: L, step: 1, oninput: e => put('layer', Number(e.target.value)) });
  const play = node('button', { type: 'button', class: 'at-button', onclick: () => local.timer ? stop() : start() }, 'Play');
  const live = node('output', { 'aria-live': 'polite', class: 'at-live' });
  const block = node('span', { class: 'at-number', 'aria-hidden': 'true' });
  function stop() { clearInterval(local.timer); local.timer = null; play.textContent = 'Play'; }
  function start() {
    if (get('layer') === L) put('layer', 1);
    play.textContent = 'Stop';
    local.timer = setInterval(() => { if (get('layer') < L) put('layer', get('layer') + 1); else stop(); }, STEP_MS);
  }
  const modes = MODES.map(mode => node('button', { type: 'button', class: 'at-button',
    onclick: () => { local.mode = mode; update(); } }, mode));
  const controls = node('div', { class: 'at-controls' }, node('label', { class: 'at-block' }, 'Block ', slider, block), play,
    node('div', { role: 'group', 'aria-label': 'What the pictures show', class: 'at-group' }, ...modes));

  function updateControls() {
    const l = get('layer'), i = get('image'), counts = runs.map(run => run.count(i, l - 1));
    slider.value = l;
    set(slider, { 'aria-valuetext': `block ${l} of ${L}` });
    block.textContent = `${l} of ${L}`;
    modes.forEach((button, k) => set(button, { 'aria-pressed': MODES[k] === local.mode }));
    live.textContent = runs.length === 1 ? `${counts[0]} of ${N} patches active in block ${l} (${percent(counts[0] / N)})`
      : `Patches active in block ${l}, of ${N}: ` + runs.map((run, k) => `${run.name} ${counts[k]} (${percent(counts[k] / N)})`).join(', ');
  }

  // one picture per model
  function moved(event) {
    const token = Math.max(get('token'), 0), r = Math.floor(token / columns), c = token % columns, step = ARROWS[event.key];
    if (step) put('token', Math.min(Math.max(r + step[0], 0), rows - 1) * columns + Math.min(Math.max(c + step[1], 0), columns - 1));
    else if (event.key === 'Home') put('token', r * columns);
    else if (event.key === 'End') put('token', (r + 1) * columns - 1);
    else if (event.key === 'Enter') local.pinned = !local.pinned;
    else if (event.key === 'Escape') close();
    else return;
    local.hover = null;
    event.preventDefault();
    event.stopPropagation();
    update();
  }
  function close() { local.pinned = false; local.hover = null; put('token', -1); }
  function patchAt(svg, event) {
    const box = svg.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left) / box.width * columns), r = Math.floor((event.clientY - box.top) / box.height * rows);
    return r < 0 || c < 0 || r >= rows || c >= columns ? null : r * columns + c;
  }

  function figureOf(k) {
    const picture = draw('image', { width, height, preserveAspectRatio: 'none', class: width <= 128 ? 'at-pixels' : null });
    const faded = draw('path', { class: 'at-faded' }), depth = draw('g', { class: 'at-depth' }), veil = draw('g', { class: 'at-veil' });
    const rim = [draw('path', { class: 'at-rim-outer' }), draw('path', { class: 'at-rim' })];
    const mark = ['at-mark-outer', 'at-mark'].map(name => draw('rect', { width: w, height: h, class: name }));
    const svg = draw('svg', { viewBox: `0 0 ${width} ${height}`, class: 'at-grid', tabindex: 0, role: 'application',
      'aria-roledescription': 'patch grid', onkeydown: moved,
      onfocus: () => { if (get('token') < 0) put('token', 0); },
      onpointermove: e => { const n = patchAt(svg, e); if (n !== local.hover) { local.hover = n; updateTokens(); } },
      onpointerleave: () => { local.hover = null; updateTokens(); },
      onpointerdown: e => { local.hover = null; local.pinned = true; put('token', patchAt(svg, e) ?? -1); update(); } },
      picture, faded, veil, depth, ...rim, ...mark);
    const title = node('figcaption'), facts = node('p', { class: 'at-facts' }), usage = node('div', { class: 'at-usage' });
    const heads = headsOf(k), budget = budgetOf(k), made = node('figure', {}, title, svg, facts, usage, heads.node, ...budget.nodes);
    let drawn = '';

    // Stage and head whose votes are in sight: at the block of the stage, in the overlay.
    function voted() {
      if (!local.head || local.head[0] !== k || local.mode !== 'Overlay' || !runs[k].votes) return null;
      const [, s, h] = local.head;
      return runs[k].votes.blocks[s] === get('layer') ? [s, h] : null;
    }

    function describe() {
      const run = runs[k], i = get('image'), l = get('layer'), token = shown();
      const state = token < 0 ? '' : `; patch ${token}, row ${Math.floor(token / columns)}, column ${token % columns}: `
        + (run.on(i, l - 1, token) ? 'active' : 'not active');
      const votes = voted() ? `, votes of head ${voted()[1] + 1}` : '';
      set(svg, { 'aria-label': `${run.name}, ${local.mode.toLowerCase()}${votes}: ${run.count(i, l - 1)} of ${N} patches active in block ${l}${state}` });
    }
    function token() {
      const n = shown();
      for (const rect of mark) set(rect, { x: n % columns * w, y: Math.floor(n / columns) * h, visibility: n < 0 ? 'hidden' : 'visible' });
      describe();
    }
    function update() {
      const run = runs[k], i = get('image'), l = get('layer') - 1, over = local.mode === 'Overlay';
      set(picture, { href: data.pictures[i], visibility: local.mode === 'Depth' ? 'hidden' : 'visible' });
      const votes = voted();
      veil.replaceChildren(...(votes ? Array.from({ length: N }, (_, n) => draw('rect', { x: n % columns * w, y: Math.floor(n / columns) * h,
        width: w, height: h, fill: '#fff', 'fill-opacity': (.9 * (1 - run.vote(i, ...votes, n))).toFixed(2) })) : []));
      set(faded, { d: over && !votes ? cells(n => !run.on(i, l, n), rows, columns, w, h) : '' });
      const edges = local.mode === 'Image' ? '' : outline(n => run.on(i, l, n), rows, columns, w, h);
      for (const path of rim) set(path, { d: edges });
      const wanted = local.mode === 'Depth' ? run.depths(i) : [];
      if (drawn !== String(wanted)) { depth.replaceChildren(...depthCells(wanted, data)); drawn = String(wanted); }
      title.replaceChildren(sample(run), ' ', run.name);
      const verdict = run.right[i] === null ? '' : run.right[i] ? ', right' : ', wrong';
      facts.textContent = `${(run.macs[i] / 1e9).toPrecision(3)} GMACs, ${percent(run.macs[i] / run.dense)} of dense. `
        + `Says ${run.guess[i]} (${percent(run.probability[i])})${verdict}.`;
      usage.replaceChildren(usageOf(run));
      heads.update();
      token();
    }
    return { node: made, update, token, budget: budget.update };
  }

  // Which heads and sub-layers ran, a column per block; a click moves the block, as the slider does.
  function usageOf(run) {
    const i = get('image'), kinds = [...Array(run.H).keys()].map(h => [`head ${h + 1}`, l => run.head(i, l, h)]);
    kinds.push(['attn', l => run.sublayer(i, l, 0)], ['MLP', l => run.sublayer(i, l, 1)]);
    const shut = kinds.map(([name, on]) => [name, [...Array(L).keys()].filter(l => !on(l)).map(l => l + 1)]).filter(([, off]) => off.length);
    if (!shut.length) return node('p', { class: 'at-facts' }, `All ${run.H} heads, attention and MLP ran in every block.`);
    const svg = draw('svg', { viewBox: `0 0 ${L * 10 + 38} ${kinds.length * 10 + 12}`, role: 'img', class: 'at-cells',
      'aria-label': `Shut in ${run.name}: ` + shut.map(([name, off]) => `${name} in block ${spans(off)}`).join('; '),
      onclick: e => { const l = e.target.getAttribute('data-block'); if (l) put('layer', Number(l)); } });
    kinds.forEach(([name, on], y) => {
      svg.append(draw('text', { x: 35, y: y * 10 + 8, class: 'at-end' }, name));
      for (let l = 0; l < L; l++) svg.append(draw('rect', { x: 38 + l * 10 + 1, y: y * 10 + 1, width: 8, height: 8,
        'data-block': l + 1, class: on(l) ? 'at-open' : 'at-shut' }));
    });
    for (const l of new Set([1, Math.ceil(L / 2), L])) svg.append(draw('text', { x: 43 + (l - 1) * 10, y: kinds.length * 10 + 9, class: 'at-middle' }, String(l)));
    svg.append(draw('rect', { x: 38 + (get('layer') - 1) * 10, y: 0, width: 10, height: kinds.length * 10, class: 'at-now' }));
    return svg;
  }

  // Weights of the heads at the stages of AS-ViT; a press shows what the head voted for, another press shows all again.
  function headsOf(k) {
    const holder = node('div');
    let made = null, buttons = [];
    const pressed = (s, h) => String(local.head) === String([k, s, h]);
    function press(s, h) {
      local.head = pressed(s, h) ? null : [k, s, h];
      local.mode = 'Overlay';
      put('layer', runs[k].votes.blocks[s]);
      update();
    }
    function build(blocks) {
      buttons = blocks.map((_, s) => Array.from({ length: runs[k].H }, (_, h) =>
        node('button', { type: 'button', class: 'at-button at-head', onclick: () => press(s, h) })));
      holder.replaceChildren(...blocks.map((l, s) => node('div', { class: 'at-heads', role: 'group', 'aria-label': `Weights of heads after block ${l}` },
        node('span', { class: 'at-facts' }, `Heads, block ${l}, %:`), ...buttons[s])));
    }
    function updateHeads() {
      const { votes } = runs[k], blocks = votes ? votes.blocks : [];
      if (made !== String(blocks)) { build(blocks); made = String(blocks); }
      buttons.forEach((row, s) => row.forEach((button, h) => {
        const weight = votes.weights[get('image')][s][h];
        button.textContent = weight;
        set(button, { 'aria-label': `head ${h + 1}: ${weight} %`, 'aria-pressed': pressed(s, h) });
      }));
    }
    return { node: holder, update: updateHeads };
  }

  // Jupyter alone has somebody who can compute again. While an answer is out, the slider is the reader's; then it shows what is in force.
  let asked = 0;
  function budgetOf(k) {
    if (!model.send || runs[k].budget === null) return { nodes: [], update() {} };
    const said = node('span', { class: 'at-number' });
    const input = node('input', { type: 'range', min: .1, max: 1, step: .05, 'aria-label': `Budget of ${runs[k].name}`, oninput: tell,
      onchange: () => { asked++; notice.textContent = CALIBRATING; model.send({ kind: 'budget', run: k, budget: Number(input.value) }); } });
    function tell() { say(Number(input.value)); }
    function say(budget) { said.textContent = percent(budget); set(input, { 'aria-valuetext': percent(budget) }); }
    function update() { input.value = runs[k].budget; say(runs[k].budget); }
    update();
    return { nodes: [node('label', { class: 'at-block' }, 'Budget ', input, said)], update };
  }
  function showBudgets() { if (!asked) figures.forEach(f => f.budget()); }
  function hear() {
    notice.textContent = get('notice');
    if (get('notice') !== CALIBRATING) { asked = Math.max(asked - 1, 0); showBudgets(); }
  }
  const notice = node('p', { role: 'status', class: 'at-facts' });

  // the card of one patch
  const headline = node('p', { 'aria-live': 'polite' }), stories = node('div');
  const card = node('section', { class: 'at-card', 'aria-label': 'Patch' }, headline, stories);

  function sparkline(run, i, n) {
    const points = [...Array(L).keys()].map(l => [l, run.value(i, l, n)]).filter(([, v]) => v !== null);
    const lines = run.lines.map((line, l) => [l, line]).filter(([, line]) => line !== null);
    if (!points.length) return [];
    const top = Math.max(...points.map(p => p[1]), ...lines.map(p => p[1])) || 1, x = l => 6 + l * 12, y = v => 40 - 34 * v / top;
    const above = ([l, v]) => run.lines[l] !== null && v >= run.lines[l];
    return [draw('svg', { viewBox: `0 0 ${L * 12} 46`, class: 'at-spark', 'aria-hidden': 'true' },
      draw('path', { d: `M${x(get('layer') - 1)} 0v46`, class: 'at-cursor' }),
      draw('path', { d: lines.map(([l, v]) => `M${x(l) - 6} ${y(v)}h12`).join(''), class: 'at-line' }),
      draw('polyline', { points: points.map(([l, v]) => `${x(l)},${y(v)}`).join(' '), class: 'at-curve', stroke: run.stroke }),
      ...points.map(p => draw('circle', { cx: x(p[0]), cy: y(p[1]), r: 3, stroke: run.stroke, class: 'at-dot', fill: above(p) ? run.stroke : 'var(--at-back)' })))];
  }

  // What is told of a patch: the blocks it took part in, its last score up to this block, and why it left if no score says so.
  function story(run, n) {
    const i = get('image'), took = run.blocksOf(i, n), told = [`${took.length} of ${L} blocks` + (took.length && took.length < L ? ` (${spans(took)})` : '')];
    let l = get('layer') - 1;
    while (l > 0 && run.value(i, l, n) === null) l--;
    const value = run.value(i, l, n), line = run.lines[l];
    if (value !== null) told.push(`block ${l + 1}: ${run.words[0]} ${short(value)}` + (line === null ? '' : `, ${run.words[1]} ${short(line)}`));
    if (run.method === 'a-vit' && l + 1 < get('layer') && value < line) told.push('left together with the class token');
    return node('div', {}, node('p', {}, sample(run), ' ', node('b', {}, run.name), ': ', told.join('; ')), ...sparkline(run, i, n));
  }

  function updateCard() {
    const n = shown(), text = n < 0 ? HINT : `Patch ${n} (row ${Math.floor(n / columns)}, column ${n % columns})${local.pinned ? ', kept' : ''}`;
    if (headline.textContent !== text) headline.textContent = text;
    set(headline, { class: n < 0 ? 'at-hint' : 'at-headline' });
    stories.replaceChildren(...(n < 0 ? [] : [...runs.map(run => story(run, n)), ...(runs.some(run => run.budget !== null) ? [KEY()] : [])]));
  }
  function updateTokens() { figures.forEach(f => f.token()); updateCard(); }

  // patches per block
  const curve = draw('svg', { viewBox: `0 0 ${L * 24 + 44} 132`, role: 'img', class: 'at-chart',
    onclick: e => { const box = curve.getBoundingClientRect(); put('layer', Math.min(Math.max(Math.floor(((e.clientX - box.left) / box.width * (L * 24 + 44) - 36) / 24) + 1, 1), L)); } });
  function updateCurve() {
    const i = get('image'), now = get('layer'), x = l => 36 + (l - 1) * 24, y = v => 104 - 96 * v / N;
    const ticks = [0, Math.round(N / 2), N].flatMap(v => [draw('path', { d: `M36 ${y(v)}h${L * 24}`, class: 'at-tick' }),
      draw('text', { x: 32, y: y(v) + 3, class: 'at-end' }, String(v))]);
    const numbers = [...Array(L).keys()].filter(l => L <= 14 || l % 2 === 0).map(l => draw('text', { x: x(l + 1) + 12, y: 116, class: 'at-middle' }, String(l + 1)));
    const lines = runs.map(run => {
      const counts = [...Array(L).keys()].map(l => run.count(i, l));
      const d = counts.map((v, l) => `${l ? 'V' : 'M36 '}${y(v)}h24`).join('');
      return [draw('path', { d, class: 'at-curve', stroke: run.stroke, 'stroke-dasharray': run.dash }),
              draw('circle', { cx: x(now) + 12, cy: y(counts[now - 1]), r: 4, fill: run.stroke, class: 'at-spot' }), counts];
    });
    set(curve, { 'aria-label': 'Active patches in each block. ' + runs.map((run, k) => `${run.name}: ${lines[k][2].join(', ')}`).join('. ') });
    curve.replaceChildren(...ticks, ...numbers, draw('rect', { x: x(now), y: 4, width: 24, height: 100, class: 'at-now' }),
      ...lines.flatMap(l => l.slice(0, 2)), draw('text', { x: 36 + L * 12, y: 129, class: 'at-middle' }, 'block'));
  }

  // colour bar of the depth
  const bar = node('div', { class: 'at-bar' }, node('span', {}, 'Blocks a patch took part in:'),
    node('ol', { start: 0 }, ...data.palette.map((colour, d) => node('li',
      { style: `background:${colour};color:${d < data.palette.length / 2 ? '#fff' : '#000'}` }, String(d)))));

  // gallery
  const thumbs = node('div', { class: 'at-thumbs' });
  const sort = node('select', { onchange: () => { local.sort = sort.value; updateGallery(); } },
    node('option', { value: 'depth' }, 'easy to hard (mean depth)'), node('option', { value: 'spread' }, 'depth spread'));
  const gallery = node('section', { class: 'at-gallery', 'aria-label': 'Images' }, node('label', {}, 'Images by ', sort), thumbs);
  let buttons = [];
  function updateGallery() {
    const judges = runs.filter(run => run.budget !== null), stats = data.pictures.map((_, i) => {
      const each = (judges.length ? judges : runs).map(run => run.depths(i)), m = mean(each.map(mean));
      return { i, depth: m, spread: mean(each.map(d => Math.sqrt(mean(d.map(v => (v - mean(d)) ** 2))))) };
    }).sort((a, b) => a[local.sort] - b[local.sort]);
    buttons = stats.map(({ i, depth, spread }) => node('button', { type: 'button', class: 'at-thumb', onclick: () => put('image', i), 'data-image': i },
      node('img', { src: data.pictures[i], alt: `Image ${i}${data.labels ? `, class ${data.labels[i]}` : ''}`, width: 56, height: 56 * height / width }),
      node('span', {}, `${(local.sort === 'depth' ? depth : spread).toFixed(1)} blocks`)));
    thumbs.replaceChildren(...buttons);
    markThumb();
  }
  function markThumb() { for (const b of buttons) set(b, { 'aria-pressed': Number(b.getAttribute('data-image')) === get('image') }); }

  // the same in numbers
  const table = node('table'), region = node('div', { class: 'at-scroll', tabindex: 0, role: 'region', 'aria-label': 'Numbers of each block' }, table);
  const numbers = node('details', { class: 'at-numbers' }, node('summary', {}, 'The same in numbers'), region);
  function updateTable() {
    const i = get('image'), heading = text => node('th', { scope: 'col' }, text);
    const head = runs.flatMap(run => [`${run.name}: patches`, 'heads', 'attention', 'MLP'].map((t, k) => heading(k ? `${run.name}: ${t}` : t)));
    const body = [...Array(L).keys()].map(l => node('tr', { 'aria-current': l + 1 === get('layer') ? 'true' : null },
      node('th', { scope: 'row' }, String(l + 1)), ...runs.flatMap(run => {
        const open = [...Array(run.H).keys()].filter(h => run.head(i, l, h)).length;
        return [run.count(i, l), `${open} of ${run.H}`, ...[0, 1].map(s => run.sublayer(i, l, s) ? 'ran' : 'left out')].map(v => node('td', {}, String(v)));
      })));
    table.replaceChildren(node('caption', {}, `Image ${i}, of ${N} patches`), node('thead', {}, node('tr', {}, heading('block'), ...head)), node('tbody', {}, ...body));
  }

  const picked = node('p', { class: 'at-picked' });
  const figures = runs.map((_, k) => figureOf(k));
  const root = node('div', { class: 'at-explorer' }, controls, live, picked,
    node('div', { class: figures.length === 1 ? 'at-beside' : null },
      node('div', {}, node('div', { class: 'at-models' }, ...figures.map(f => f.node)), notice, bar),
      node('div', { class: 'at-below' }, card, node('figure', {}, node('figcaption', {}, 'Active patches in each block'), curve))),
    ...(data.pictures.length > 1 ? [gallery] : []), numbers);
  el.replaceChildren(root);

  function update() {
    const i = get('image');
    updateControls();
    figures.forEach(f => f.update());
    updateCard();
    updateCurve();
    updateTable();
    markThumb();
    picked.textContent = `Image ${i} of ${data.pictures.length}` + (data.labels ? `, class: ${data.labels[i]}` : '');
    bar.hidden = local.mode !== 'Depth';
  }
  const listeners = { 'change:layer': update, 'change:token': update, 'change:image': update,
    'change:runs': () => { unpackAll(); updateGallery(); update(); showBudgets(); }, 'change:notice': hear };
  for (const [event, heard] of Object.entries(listeners)) model.on(event, heard);
  updateGallery();
  update();
  return () => { stop(); for (const [event, heard] of Object.entries(listeners)) model.off(event, heard); };
}

// --- without a kernel

// An explorer that keeps its values to itself.
export function mount(el, values) {
  const heard = {};
  const model = {
    get: name => values[name],
    set: (name, value) => { values[name] = value; (heard[`change:${name}`] || []).forEach(f => f()); },
    save_changes: () => {},
    on: (event, f) => { (heard[event] = heard[event] || []).push(f); },
    off: (event, f) => { heard[event] = (heard[event] || []).filter(g => g !== f); },
  };
  return render({ model, el });
}

// A page in a frame asks for the height that it needs.
export function fit() {
  const grow = () => {
    try { if (window.frameElement) window.frameElement.style.height = `${Math.ceil(document.body.getBoundingClientRect().height)}px`; }
    catch { /* the page around is of another origin: the frame scrolls */ }
  };
  new ResizeObserver(grow).observe(document.body);
}

export default { render };
