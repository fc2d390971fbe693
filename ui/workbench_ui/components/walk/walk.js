export default function (component) {
  // J and K, and the buttons beside them: presses are counted here, so none is lost while the server is at work. The
  // number changes at once, and so do the contexts of a neighbour, which came along with the page; the last one asked
  // for is fetched as soon as the answer before has come.
  const { data, setTriggerValue } = component
  const walk = (window.__workbenchWalk ||= { asked: null, flying: null })
  const { order, at } = data
  if (walk.flying === order[at] || walk.list !== data.list) { walk.flying = null; if (walk.asked === order[at] || walk.list !== data.list) walk.asked = null }
  walk.list = data.list
  walk.painted = order[at]  // by the page itself
  walk.ready = new Map(Object.entries(data.ready).map(([latent, html]) => [+latent, html]))
  const own = document.querySelector(`.st-key-${data.place} .stHtml`)
  if (own) walk.ready.set(order[at], own.innerHTML)  // to come back to before the server has answered
  const show = (latent) => {
    const title = document.querySelector('.wb-title h1')
    if (title) title.textContent = 'Latent ' + latent.toLocaleString('en-US')
    paint(latent)
    document.documentElement.toggleAttribute('data-late', latent !== order[at])
  }
  const TAGS = ['DIV', 'SPAN', 'B', 'I', 'BR'], ATTRIBUTES = ['class', 'title', 'data-v', 'data-x']
  const taken = (node) => {  // text and plain elements; parsing alone runs and loads nothing
    if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data)
    if (!TAGS.includes(node.tagName)) return document.createTextNode(node.textContent)
    const made = document.createElement(node.tagName)
    for (const name of ATTRIBUTES) if (node.hasAttribute(name)) made.setAttribute(name, node.getAttribute(name))
    made.append(...[...node.childNodes].map(taken))
    return made
  }
  const paint = (latent) => {
    const place = document.querySelector(`.st-key-${data.place} .stHtml`)
    if (!place || walk.painted === latent) return
    const html = (walk.ready ||= new Map()).get(latent)
    place.toggleAttribute('data-other', html === undefined)  // what stands there is of another latent
    if (html === undefined) return
    walk.painted = latent
    place.replaceChildren(...[...new DOMParser().parseFromString(html, 'text/html').body.childNodes].map(taken))
  }
  const fetch = () => {
    if (walk.asked === null || walk.flying !== null) return
    if (walk.asked === order[at]) { walk.asked = null; return }
    walk.flying = walk.asked
    setTriggerValue('to', walk.asked)
  }
  const step = (by) => {
    const now = walk.asked === null ? at : order.indexOf(walk.asked)
    const next = order[Math.max(0, Math.min(order.length - 1, now + by))]
    if (next === undefined || next === (walk.asked ?? order[at])) return
    walk.asked = next
    show(next)
    fetch()
  }
  const typing = (e) => e && (e.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(e.tagName))
  const LATER = { p: 'wb_pin', P: 'wb_pin', e: 'wb_export', E: 'wb_export' }  // what is about the latent that is on its way
  const key = (event) => {
    const late = LATER[event.key] && (walk.asked !== null || walk.flying !== null)
    if (late && !event.ctrlKey && !event.metaKey && !event.altKey && !typing(event.composedPath()[0])) {
      event.preventDefault()
      event.stopImmediatePropagation()
      walk.later = LATER[event.key]
      return
    }
    const by = { j: 1, J: 1, k: -1, K: -1 }[event.key]
    if (!by || event.ctrlKey || event.metaKey || event.altKey || typing(event.composedPath()[0])) return
    event.preventDefault()
    event.stopImmediatePropagation()
    step(by)
  }
  const click = (event) => {
    const button = event.target.closest && event.target.closest('.st-key-wb_next button, .st-key-wb_prev button')
    if (!button || button.disabled) return
    event.preventDefault()
    event.stopImmediatePropagation()
    step(button.closest('.st-key-wb_next') ? 1 : -1)
  }
  window.addEventListener('keydown', key, true)
  window.addEventListener('click', click, true)
  fetch()  // what was asked for while the answer came
  if (walk.asked !== null) show(walk.asked)  // the answer to an earlier press has put its own number there
  else { document.documentElement.removeAttribute('data-late'); own?.removeAttribute('data-other') }
  if (walk.later && walk.asked === null && walk.flying === null) {
    const name = walk.later
    walk.later = null
    setTimeout(() => document.querySelector(`.st-key-${name} button`)?.click(), 150)  // when its button is of this latent
  }
  return () => {
    document.documentElement.removeAttribute('data-late')
    window.removeEventListener('keydown', key, true)
    window.removeEventListener('click', click, true)
  }
}
