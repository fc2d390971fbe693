// One text in up to two models: below each token what was written and how long it lives, who reads it and with what
// effect on the prediction. Layers, snapshots and tokens change in the browser; the server is told where it was left.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
const el = (tag, name, text) => {
  const made = document.createElement(tag)
  if (name) made.className = name
  if (text !== undefined) made.textContent = text
  return made
}

export default function (component) {
  const { data, parentElement, setStateValue } = component
  const root = parentElement.querySelector('.mem')
  const [layers, snap, way, out, play, sides] = ['.layer', '.snap', '.way', 'output', '.play', '.sides'].map((s) => root.querySelector(s))
  const T = data.tokens.length
  const at = { token: Math.min(T - 1, data.token), depth: data.depth, snap: data.snap, way: data.way }
  const S = Math.max(...data.sides.map((s) => s.snapshots.length)), L = Math.max(...data.sides.map((s) => s.layers.length))
  // models of different depth and number of snapshots go along together: the same share of the way
  const along = (i, of, n) => n < 2 ? 0 : Math.round(i * (n - 1) / Math.max(1, of - 1))
  layers.replaceChildren(...Array.from({ length: L }, (_, i) => {
    const option = el('option', '', data.sides.map((s) => s.layers[along(i, L, s.layers.length)].name).join(' · '))
    option.value = i
    return option
  }))
  layers.value = at.depth = Math.min(at.depth, L - 1)
  snap.max = S - 1
  snap.value = at.snap = Math.min(at.snap, S - 1)
  snap.closest('label').style.display = play.style.display = S > 1 ? '' : 'none'
  way.value = at.way

  const shade = (v) => {
    if (!(v > 0.004)) return ['', '']
    const level = Math.min(8, Math.floor(9 * Math.sqrt(v)))
    return ['var(--t' + level + ')', level < 5 ? 'var(--tlo)' : 'var(--thi)']
  }
  const strength = (nats, top) => {
    if (!top || Math.abs(nats) < 0.02 * top) return 'transparent'
    const much = Math.round(100 * Math.min(1, Math.sqrt(Math.abs(nats) / top)))
    return `color-mix(in srgb, ${nats > 0 ? '#d55e00' : '#0072b2'} ${Math.max(25, much)}%, transparent)`
  }

  const built = data.sides.map((side) => {
    const share = bytes(side.share), effect = new Float32Array(bytes(side.effect).buffer)
    const survival = side.survival ? bytes(side.survival) : null
    const N = side.layers.length
    const index = (s, l, a, b) => ((s * N + l) * T + a) * T + b
    const box = el('section', 'side'), head = el('h3', '', side.name), legend = el('p', 'legend')
    const row = el('div', 'tokens'), about = el('div', 'about')
    const cells = data.tokens.map((t, i) => {
      const cell = el('button', 'tok'); cell.type = 'button'
      const text = el('span', 't', t), written = el('span', 'w'), life = el('span', 'life')
      cell.append(text, written, life)
      cell.onclick = () => { at.token = i; paint(); setStateValue('left', { ...at }) }
      cell.onkeydown = (e) => {
        const to = { ArrowLeft: i - 1, ArrowRight: i + 1 }[e.key]
        if (to === undefined || to < 0 || to >= T) return
        e.preventDefault(); at.token = to; paint(); cells[to].cell.focus(); setStateValue('left', { ...at })
      }
      row.append(cell)
      return { cell, text, written, life }
    })
    box.append(head, legend, row, about)
    sides.append(box)
    return { side, share, effect, survival, index, cells, legend, about, head }
  })
  sides.replaceChildren(...built.map((b) => b.head.parentElement))

  const nats = (v) => Math.abs(v) < 0.005 ? '0' : (v > 0 ? '−' : '+') + Math.abs(v).toFixed(2)
  const paintSide = (b) => {
    const { side } = b, s = along(at.snap, S, side.snapshots.length), l = along(at.depth, L, side.layers.length)
    const layer = side.layers[l], state = layer.kind !== 'attention', forward = at.way === 'readers', j = at.token
    const read = (i) => forward ? b.share[b.index(s, l, i, j)] / 255 : b.share[b.index(s, l, j, i)] / 255
    const worth = (i) => forward ? b.effect[b.index(s, l, j, i)] : b.effect[b.index(s, l, i, j)]
    b.head.textContent = `${side.name}, ${layer.name}, ${side.snapshots[s]}`
    b.legend.textContent = (state
      ? 'Shade: share of what a position receives of a write. Below: the strongest ' + (layer.atoms ? 'atoms (#) or channels (c)' : 'channels (c)') + ' written, and a bar for how long the write lives.'
      : 'Shade: attention, mean over heads.') + ' Underline: the next token loses (orange) or gains (blue) probability when what is kept of the token is removed.'
    b.cells.forEach((c, i) => {
      const v = i === j ? read(i) : (forward ? i > j : i < j) ? read(i) : 0, colour = shade(v), e = worth(i)
      c.text.style.background = colour[0]; c.text.style.color = colour[1]
      c.cell.style.borderBottomColor = Number.isFinite(e) ? strength(e, side.top) : 'transparent'
      c.cell.classList.toggle('on', i === j)
      c.cell.setAttribute('aria-pressed', i === j)
      const half = layer.half ? layer.half[s][i] : null
      c.written.textContent = layer.written ? layer.written[s][i].slice(0, 2).join(' ') : ''
      c.life.style.display = half === null ? 'none' : ''
      c.life.style.width = half === null ? '0' : Math.max(6, 100 * Math.log2(1 + half) / Math.log2(1 + T)) + '%'
      c.cell.title = `${data.tokens[i]} (position ${i})` + (half === null ? '' : half >= T ? '; lives on to the end of the text' : `; half of it is gone after ${half} tokens`)
      c.cell.setAttribute('aria-label', c.cell.title + (v > 0.004 ? `, read with ${(100 * v).toFixed(0)} %` : ''))
    })
    const parts = [], first = el('p')
    first.append(el('b', '', `Token ${j}: `), el('code', '', data.tokens[j]))
    if (layer.written && layer.written[s][j].length) first.append(` · written: ${layer.written[s][j].map((w, k) => w + ' ' + layer.amount[s][j][k]).join(', ')}`)
    if (layer.half) {
      const half = layer.half[s][j]
      first.append(half === null ? ' · nothing is written' : half >= T ? ' · more than half of it lives to the end' : ` · half of it is gone after ${half} token${half === 1 ? '' : 's'}`)
    }
    if (j < T - 1) first.append(` · says next: “${side.predicted[s][j]}” (the text goes on with “${data.tokens[j + 1]}”, probability ${side.probability[s][j]})`)
    parts.push(first)
    if (b.survival && state) {
      const bars = el('div', 'decay'); bars.setAttribute('role', 'img')
      bars.setAttribute('aria-label', 'What is left of this write, token by token')
      for (let k = 0; k < T - j; k++) {
        const left = b.survival[b.index(s, l, j, k)] / 255, bar = el('i')
        bar.style.height = Math.max(1, 100 * Math.min(1, left)) + '%'
        bar.title = `after ${k} tokens (“${data.tokens[j + k]}”): ${(100 * left).toFixed(0)} %`
        bars.append(bar)
      }
      parts.push(el('p', '', 'What is left of it, token by token:'), bars)
    }
    const range = forward ? [...Array(T).keys()].slice(j) : [...Array(j + 1).keys()]
    const best = range.map((i) => [i, read(i), worth(i)]).filter((x) => x[1] > 0.004 || Math.abs(x[2] || 0) > 0.01)
      .sort((x, y) => Math.abs(y[2] || 0) - Math.abs(x[2] || 0) || y[1] - x[1]).slice(0, 6)
    const table = el('table'), top = el('tr')
    top.append(...[forward ? 'read at' : 'of token', 'position', state ? 'share of what it receives' : 'attention', forward ? 'effect on what follows, nats' : 'effect on what follows this token, nats'].map((t) => el('th', '', t)))
    table.append(top, ...best.map(([i, v, e]) => {
      const tr = el('tr')
      tr.append(el('td', 'c', data.tokens[i]), el('td', 'n', i), el('td', 'n', (100 * v).toFixed(0) + ' %'), el('td', 'n', Number.isFinite(e) ? nats(e) : '–'))
      return tr
    }))
    parts.push(best.length ? table : el('p', '', forward ? 'Nothing later depends on it here.' : 'It reads nothing here.'))
    b.about.replaceChildren(...parts)
  }
  const paint = () => {
    const longest = data.sides.find((x) => x.snapshots.length === S)
    out.textContent = longest.snapshots[at.snap]
    snap.setAttribute('aria-valuetext', longest.snapshots[at.snap])
    built.forEach(paintSide)
  }
  const keep = () => setStateValue('left', { ...at })
  layers.onchange = () => { at.depth = +layers.value; paint(); keep() }
  way.onchange = () => { at.way = way.value; paint(); keep() }
  snap.oninput = () => { at.snap = +snap.value; paint() }
  snap.onchange = keep
  let timer = null
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'play' }
  play.onclick = () => {
    if (timer) return stop()
    play.textContent = 'pause'
    if (at.snap >= S - 1) at.snap = 0
    snap.value = at.snap; paint()
    timer = setInterval(() => {
      if (at.snap >= S - 1) { keep(); return stop() }
      snap.value = ++at.snap; paint()
    }, 700)
  }
  paint()
  return () => clearInterval(timer)
}
