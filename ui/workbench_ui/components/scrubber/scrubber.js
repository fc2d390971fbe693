export default function (component) {
  const { data, parentElement, setStateValue } = component
  const root = parentElement.querySelector('.scrub')
  const slider = root.querySelector('input'), out = root.querySelector('output'), play = root.querySelector('button')
  const rows = root.querySelector('.rows'), curve = root.querySelector('.curve')
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const S = data.snapshots.length
  slider.max = S - 1
  const shade = (v) => {  // the ramp of every other page, in the theme at hand
    if (v <= 0) return null
    const level = Math.min(8, Math.floor(9 * v / 255))
    return ['var(--t' + level + ')', level < 5 ? 'var(--tlo)' : 'var(--thi)']
  }
  rows.replaceChildren()
  const painted = data.contexts.map((c) => {
    const values = bytes(c.values), T = c.tokens.length
    const row = document.createElement('div'); row.className = 'row'
    const meta = document.createElement('div'); meta.className = 'm'
    const value = document.createElement('b'), place = document.createTextNode(c.place)
    meta.append(value, place)
    const text = document.createElement('div'); text.className = 'c'
    const spans = c.tokens.map((t, j) => {
      const span = document.createElement('span'); span.textContent = t
      if (j === c.peak) span.className = 'pk'
      text.append(span); return span
    })
    row.append(meta, text); rows.append(row)
    return { values, T, spans, value, peak: c.peak }
  })
  const top = Math.max(...data.norms, 1e-9)
  curve.replaceChildren(...data.norms.map((n, s) => {
    const bar = document.createElement('i')
    bar.style.height = Math.max(1, 100 * n / top) + '%'
    bar.title = data.snapshots[s] + ': decoder norm ' + n.toPrecision(3)
    bar.onclick = () => { slider.value = s; paint(s); setStateValue('snapshot', s) }
    return bar
  }))
  const paint = (s) => {
    out.textContent = data.snapshots[s] + ' · norm ' + data.norms[s].toPrecision(3)
    slider.setAttribute('aria-valuetext', data.snapshots[s])
    ;[...curve.children].forEach((bar, j) => bar.classList.toggle('on', j === s))
    for (const c of painted) {
      for (let t = 0; t < c.T; t++) {
        const colour = shade(c.values[s * c.T + t])
        c.spans[t].style.background = colour ? colour[0] : ''
        c.spans[t].style.color = colour ? colour[1] : ''
        const v = c.values[s * c.T + t] / 255 * data.top
        c.spans[t].title = v > 0 ? v.toPrecision(3) : ''
      }
      const v = c.values[s * c.T + c.peak] / 255 * data.top
      c.value.textContent = v > 0 ? v.toPrecision(3) : 'silent'
    }
  }
  const start = Math.min(S - 1, data.start ?? S - 1)
  slider.value = start
  paint(start)
  slider.oninput = () => paint(+slider.value)
  slider.onchange = () => setStateValue('snapshot', +slider.value)
  let timer = null
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'play' }
  play.onclick = () => {
    if (timer) return stop()
    play.textContent = 'pause'
    if (+slider.value === S - 1) slider.value = 0
    paint(+slider.value)
    timer = setInterval(() => {
      if (+slider.value >= S - 1) return stop()
      slider.value = +slider.value + 1
      paint(+slider.value)
    }, 350)
  }
  return () => clearInterval(timer)
}
