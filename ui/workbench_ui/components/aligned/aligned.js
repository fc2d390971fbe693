export default function (component) {
  const { data, parentElement, setStateValue } = component
  const root = parentElement.querySelector('.pair'), rows = root.querySelector('.rows'), keys = root.querySelector('.keys')
  const out = root.querySelector('output'), say = root.querySelector('.say b')
  const shade = (k) => {  // the ramp of every other page, in the theme at hand
    const level = Math.min(8, Math.floor(9 * k))
    return ['var(--t' + level + ')', level < 5 ? 'var(--tlo)' : 'var(--thi)']
  }
  rows.replaceChildren()
  const painted = data.strips.map((c) => {
    const row = document.createElement('div'); row.className = 'row'
    const meta = document.createElement('div'); meta.className = 'm'; meta.textContent = c.place
    const text = document.createElement('div'); text.className = 'c'
    const spans = c.tokens.map((t, j) => {
      const span = document.createElement('span'); span.textContent = t
      if (j === c.peak) span.className = 'pk'
      if (c.a[j] > 0) { const [back, ink] = shade(Math.min(1, c.a[j] / data.top[0])); span.style.background = back; span.style.color = ink }
      text.append(span); return span
    })
    row.append(meta, text); rows.append(row)
    return { ...c, spans }
  })
  let shift = data.shift
  const number = (v) => v > 0 ? v.toPrecision(3) : 'silent'
  const moved = (c, j) => c.b[j + data.pad + shift] ?? 0
  const words = (s) => s === 0 ? 'on the same token' : Math.abs(s) + ' token' + (Math.abs(s) > 1 ? 's' : '') + (s > 0 ? ' later' : ' earlier')
  const paint = () => {
    say.textContent = words(shift)
    ;[...keys.children].forEach((b) => b.setAttribute('aria-pressed', +b.dataset.s === shift))
    for (const c of painted) c.spans.forEach((span, j) => {
      const v = moved(c, j)
      span.style.borderBottomWidth = v > 0 ? [1.5, 3, 4.5][Math.min(2, Math.floor(3 * v / data.top[1]))] + 'px' : '0'
    })
  }
  keys.replaceChildren(...data.shifts.map((s) => {
    const b = document.createElement('button'); b.type = 'button'; b.dataset.s = s; b.textContent = (s > 0 ? '+' : '') + s
    b.onclick = () => { shift = s; paint(); setStateValue('shift', s) }
    return b
  }))
  const grid = () => document.querySelector('.joint .grid')
  const mark = (a, b) => {
    const cells = grid()?.children
    if (!cells) return
    for (const cell of cells) cell.style.outline = ''
    if (a === null) return
    const bin = (v, top) => Math.max(0, Math.min(31, Math.ceil(v / (top || 1) * 31)))
    const cell = cells[(31 - bin(b, data.joint[1])) * 32 + bin(a, data.joint[0])]
    if (cell) cell.style.outline = '2px solid #d55e00'
  }
  rows.onmouseover = (event) => {
    for (const c of painted) {
      const j = c.spans.indexOf(event.target)
      if (j < 0) continue
      out.textContent = 'A ' + number(c.a[j]) + ' · B ' + number(moved(c, j)) + ' · position ' + (c.start + j)
      return mark(c.a[j], moved(c, j))
    }
  }
  rows.onmouseleave = () => { out.textContent = ''; mark(null) }
  paint()
}
