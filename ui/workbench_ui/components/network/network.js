const NS = 'http://www.w3.org/2000/svg'
const KINDS = [['embedding', 'token'], ['latent', 'latent'], ['error', 'error: what the dictionary leaves out'], ['logit', 'output'], ['group', 'group of yours']]
const make = (tag, attrs, text) => {
  const e = document.createElementNS(NS, tag)
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v)
  if (text !== undefined) e.textContent = text
  return e
}
const mark = (kind, x, y) => {  // another shape for each kind, as in the exported file
  const css = { class: 'mark ' + kind }
  if (kind === 'embedding') return make('rect', { ...css, x: x - 4.5, y: y - 4.5, width: 9, height: 9 })
  if (kind === 'group') return make('rect', { ...css, x: x - 6, y: y - 5, width: 12, height: 10, rx: 4 })
  if (kind === 'error') return make('path', { ...css, d: `M${x} ${y - 6}L${x + 6} ${y}L${x} ${y + 6}L${x - 6} ${y}Z` })
  if (kind === 'logit') return make('path', { ...css, d: `M${x} ${y - 6}L${x + 6} ${y + 5}L${x - 6} ${y + 5}Z` })
  return make('circle', { ...css, cx: x, cy: y, r: 5 })
}
export default function (component) {
  const { data, parentElement, setTriggerValue } = component
  const root = parentElement.querySelector('.net'), canvas = root.querySelector('.canvas'), say = root.querySelector('.say')
  if (root.same !== data.same) draw()
  root.choose(data.chosen)

  function draw() {
    root.same = data.same
    const dots = data.dots.map(([id, kind, x, y, name, full, pin]) => ({ id, kind, x, y, name, full, pin, links: [] }))
    data.links.forEach((link) => { dots[link[0]].links.push(link); dots[link[1]].links.push(link) })
    const most = Math.max(...data.links.map((l) => Math.abs(l[2])), 1e-12)
    const path = ([s, t, w]) => {
      const a = dots[s], b = dots[t], bend = Math.max(14, Math.abs(a.y - b.y) / 2.4)
      return make('path', { class: 'link ' + (w > 0 ? 'up' : 'down'), 'stroke-width': 0.5 + 3 * Math.abs(w) / most,
        d: `M${a.x} ${a.y - 5}C${a.x} ${a.y - 5 - bend} ${b.x} ${b.y + 5 + bend} ${b.x} ${b.y + 5}` })
    }
    const svg = make('svg', { width: data.width, height: data.height, role: 'group', 'aria-label': `Attribution graph with ${dots.length} nodes; arrow keys walk, Enter chooses, P pins` })
    for (const [y, name] of data.rows) svg.append(make('line', { x1: 0, x2: data.width, y1: y, y2: y }), make('text', { x: 4, y: y - 6, class: 'soft' }, name))
    for (const [x, token] of data.columns) svg.append(make('text', { x: x + 2, y: data.height - 8, class: 'tok' }, token))
    const base = make('g', { class: 'base' }), lit = make('g', { class: 'lit' }), all = make('g', {})
    base.append(...data.links.slice(0, data.n).reverse().map(path))
    svg.append(base, lit, all)
    let chosen = null, focus = 0
    const light = (j) => {  // what this node is made by and makes, at once
      lit.replaceChildren(); say.replaceChildren()
      dots.forEach((d) => d.g.classList.remove('near'))
      svg.classList.toggle('dim', j !== null)
      if (j === null) { say.textContent = 'Point at a node to light up its links; click it, or press Enter on it, for its contexts. P pins it.'; return }
      const d = dots[j], shown = d.links.slice(0, 60)
      lit.append(...shown.map(path))
      d.g.classList.add('near')
      for (const [s, t] of shown) dots[s === j ? t : s].g.classList.add('near')
      const b = document.createElement('b'); b.textContent = d.full
      const list = (links, side) => links.slice(0, 3).map((l) => `${dots[l[side]].name || dots[l[side]].full} ${l[2] > 0 ? '+' : ''}${l[2].toPrecision(3)}`).join(', ') || 'none kept'
      say.append(b, ` · made by ${list(d.links.filter((l) => l[1] === j), 0)} · makes ${list(d.links.filter((l) => l[0] === j), 1)}`)
    }
    const at = (id) => { const j = dots.findIndex((d) => d.id === id); return j < 0 ? null : j }
    root.choose = (id) => {
      chosen = at(id)
      dots.forEach((d, j) => { d.g.classList.toggle('chosen', j === chosen); d.g.setAttribute('aria-pressed', j === chosen) })
      if (chosen !== null) point(chosen)
      light(chosen)
    }
    const point = (j) => { dots[focus].g.setAttribute('tabindex', -1); focus = j; dots[j].g.setAttribute('tabindex', 0) }
    const pick = (j) => { root.choose(dots[j].id); setTriggerValue('chosen', dots[j].id) }
    const walk = (j, dx, dy) => {  // the nearest node in that direction
      let best = null, least = Infinity
      dots.forEach((d, k) => {
        const x = d.x - dots[j].x, y = d.y - dots[j].y, along = dx ? x * dx : y * dy, off = Math.abs(dx ? y : x)
        if (k !== j && along > 0.5 && along + 3 * off < least) { least = along + 3 * off; best = k }
      })
      if (best !== null) { point(best); dots[best].g.focus({ preventScroll: true }); dots[best].g.scrollIntoView({ block: 'nearest', inline: 'nearest' }) }
    }
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
    dots.forEach((d, j) => {
      d.g = make('g', { class: 'node' + (d.pin ? ' pin' : ''), tabindex: -1, role: 'button', 'aria-label': d.full + (d.pin ? ', pinned' : ''), 'data-id': d.id })
      const wide = d.name ? 16 + 7 * d.name.length : 12
      d.g.append(make('rect', { class: 'hit', x: d.x - 7, y: d.y - 8.5, width: wide + 4, height: 17, rx: 4 }), mark(d.kind, d.x, d.y))
      if (d.name) d.g.append(make('text', { x: d.x + 10, y: d.y + 4 }, d.name))
      d.g.onpointerenter = () => light(j)
      d.g.onpointerleave = () => light(chosen)
      d.g.onfocus = () => light(j)
      d.g.onblur = () => light(chosen)
      d.g.onclick = () => pick(j)
      d.g.onkeydown = (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return
        if (steps[event.key]) walk(j, ...steps[event.key])
        else if (event.key === 'Enter' || event.key === ' ') pick(j)
        else if (event.key === 'p' || event.key === 'P') setTriggerValue('pinned', d.id)
        else return
        event.preventDefault(); event.stopPropagation()
      }
      all.append(d.g)
    })
    if (dots.length) point(0)
    const held = parentElement.activeElement?.dataset?.id ?? parentElement.getRootNode().activeElement?.dataset?.id
    const first = !canvas.firstChild, left = canvas.scrollLeft, top = canvas.scrollTop
    canvas.replaceChildren(svg)
    canvas.scrollLeft = first ? data.width : left; canvas.scrollTop = top  // the outputs are at the last token
    const there = new Set(dots.map((d) => d.kind)), legend = root.querySelector('.legend')
    legend.replaceChildren(...KINDS.filter(([k]) => there.has(k)).map(([k, name]) => {
      const item = document.createElement('span'), icon = make('svg', { width: 12, height: 12, 'aria-hidden': 'true' })
      icon.append(mark(k, 6, 6)); item.append(icon, name); return item
    }), ...[['up', 'raises'], ['down', 'lowers; thicker is stronger']].map(([k, name]) => {
      const item = document.createElement('span'), icon = make('svg', { width: 26, height: 12, 'aria-hidden': 'true' })
      icon.append(make('path', { class: 'link ' + k, style: 'stroke-opacity:1', 'stroke-width': 2, d: 'M0 6H26' })); item.append(icon, name); return item
    }))
    const again = held === undefined ? null : at(held)
    if (again !== null) { point(again); dots[again].g.focus({ preventScroll: true }) }
  }
}
