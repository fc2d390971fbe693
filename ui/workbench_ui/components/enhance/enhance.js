export default function (component) {
  // One listener for what st.html cannot do: a token's value on the histogram, links that change the page in place, rows
  // that act as their first link, commands that are copied. The page's own mount hears first, the program's after it.
  const { setTriggerValue, data } = component
  const page = Boolean(data && data.page), near = (event, css) => event.target.closest && event.target.closest(css)
  const cursor = (value) => {
    document.querySelectorAll('.hist').forEach((hist) => {
      const line = hist.querySelector('.cursor')
      if (!line) return
      const lo = Math.log(+hist.dataset.lo), hi = Math.log(+hist.dataset.hi)
      const at = value > 0 ? (Math.log(value) - lo) / (hi - lo) : NaN
      line.style.display = Number.isFinite(at) ? 'block' : 'none'
      if (Number.isFinite(at)) line.style.left = 100 * Math.min(1, Math.max(0, at)) + '%'
    })
  }
  const over = (event) => {
    const token = near(event, '.ctx [data-x]')
    cursor(token ? +token.dataset.x : NaN)
  }
  const copy = (button) => {
    navigator.clipboard.writeText(button.dataset.copy).then(() => {
      const was = button.textContent
      button.textContent = 'copied'
      setTimeout(() => { button.textContent = was }, 1500)
    })
  }
  const click = (event) => {
    if (event.button || event.defaultPrevented) return
    const button = near(event, '[data-copy]')
    if (button) { event.preventDefault(); return copy(button) }
    const other = event.ctrlKey || event.metaKey || event.shiftKey || event.altKey
    let link = near(event, 'a[data-latent], a[data-put], a[data-page]')
    if (!link && !near(event, 'a, button, input, summary') && !String(window.getSelection())) {
      link = near(event, 'tr[data-row]')?.querySelector('a')
      if (link && other) return window.open(link.href, '_blank')
    }
    if (!link || other) return
    event.preventDefault()
    const to = link.dataset
    if (to.put) setTriggerValue('put', JSON.parse(to.put))
    else if (to.page) setTriggerValue('go', { page: to.page, query: new URL(link.href, window.location.href).search })
    else setTriggerValue('open', { d: to.dictionary || '', i: to.latent })
  }
  if (page) document.addEventListener('mouseover', over)
  document.addEventListener('click', click, page)
  return () => {
    document.removeEventListener('mouseover', over)
    document.removeEventListener('click', click, page)
  }
}
