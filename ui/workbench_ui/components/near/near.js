export default function (component) {
  // Says that the reader comes near what will stand here. The page scrolls inside an element of its own, so that one is
  // the frame that is watched, 300 px beyond its edges. The server draws one at a time, and hears one of two that are said
  // at once; so they stand in line, and the first says it again until it has been drawn, that is, until it is gone.
  const { parentElement, setTriggerValue } = component
  const line = (window.__workbenchNear ||= [])
  const me = { timer: 0, say: () => { setTriggerValue('near', true); me.timer = setTimeout(me.say, 3000) } }
  const place = parentElement.host || parentElement
  const watch = new IntersectionObserver((seen) => {
    if (!seen.some((s) => s.isIntersecting)) return
    watch.disconnect()
    if (line.push(me) === 1) me.say()
  }, { root: place.closest('[data-testid=stMain]'), rootMargin: '300px 0px' })
  watch.observe(place)
  return () => {
    watch.disconnect()
    clearTimeout(me.timer)
    const at = line.indexOf(me)
    if (at >= 0) line.splice(at, 1)
    if (at === 0) line[0]?.say()
  }
}
