var c=`.labvoice-monitor {
  --ink: var(--jp-ui-font-color1, #1f2933);
  --muted: var(--jp-ui-font-color2, #57636f);
  --line: var(--jp-border-color2, #dfe4ea);
  box-sizing: border-box;
  max-width: 62rem;
  padding: 0.9rem 1rem;
  border: 1px solid var(--line);
  border-radius: 10px;
  background: var(--jp-layout-color1, #fff);
  color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif;
}
.labvoice-monitor .lv-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr)); gap: 0.7rem; }
.labvoice-monitor .lv-tile { display: grid; padding: 0.55rem 0.75rem; border-radius: 8px; background: var(--jp-layout-color2, #f5f7f9); }
.labvoice-monitor .lv-tile span, .labvoice-monitor small { color: var(--muted); font-size: 12px; }
.labvoice-monitor .lv-tile b { font-size: 20px; font-variant-numeric: tabular-nums; }
.labvoice-monitor svg { width: 100%; height: 28px; }
.labvoice-monitor path { fill: none; stroke: #0072b2; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.labvoice-monitor h4 { margin: 0.9rem 0 0.2rem; font-size: 12px; color: var(--muted); }
.labvoice-monitor table { width: 100%; border-collapse: collapse; font-size: 13px; table-layout: auto; }
.labvoice-monitor th, .labvoice-monitor td { padding: 0.15rem 0.7rem 0.15rem 0; text-align: left; font-weight: 400; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.labvoice-monitor th { color: var(--muted); font-size: 12px; }
.labvoice-monitor tr { background: none !important; }
.labvoice-monitor p { margin: 0.2rem 0; }
.labvoice-monitor .lv-trouble { padding: 0.5rem 0.7rem; border-left: 4px solid #c2410c; }
`;function r(t,o={},...n){let e=document.createElement(t);for(let[i,l]of Object.entries(o))typeof l=="function"?e.addEventListener(i,l):l!==!1&&e.setAttribute(i,l===!0?"":l);return e.append(...n.filter(i=>i!==null)),e}var u="http://www.w3.org/2000/svg";function h(t,o,n){let e=Math.max(...t.map(m=>m??0),0),i=o/Math.max(1,t.length-1),l="M",a="";return t.forEach((m,g)=>{if(m===null){l="M";return}let f=e>0?n-m/e*(n-2)-1:n-1;a+=`${l}${(g*i).toFixed(1)},${f.toFixed(1)}`,l="L"}),a}function p(t,o,n){let e=document.createElementNS(u,"svg");e.setAttribute("viewBox",`0 0 ${o} ${n}`),e.setAttribute("preserveAspectRatio","none"),e.setAttribute("aria-hidden","true");let i=document.createElementNS(u,"path");return i.setAttribute("d",h(t,o,n)),e.append(i),e}var b=t=>t==null?"–":`${Math.round(t*1e3)} ms`;function s(t,o,n,e){let i=r("div",{class:"lv-tile"},r("span",{},t),r("b",{},o));return i.append(p(e??[],120,28),r("small",{},n)),i}function d(t,o,n){return o.length?r("table",{},r("thead",{},r("tr",{},...t.map(e=>r("th",{scope:"col"},e)))),r("tbody",{},...o.map(e=>r("tr",{},...e.map(i=>r("td",{},i)))))):r("p",{class:"lv-none"},n)}function w(t){if(t.running===void 0)return[r("p",{},"looking…")];if(!t.running)return[r("p",{},"The lab is not running any more.")];let{figures:o,series:n}=t,e=t.dispatches-t.failed,i=t.dispatches?`${Math.round(100*e/t.dispatches)} %`:"–",l=t.failed?`${t.failed} failed, the last: ${t.last_failure}`:"none failed";return[...t.trouble?[r("p",{class:"lv-trouble",role:"alert"},t.trouble)]:[],r("div",{class:"lv-tiles"},s("Rooms",String(o.rooms),`${o.agents} agents in them`,n.rooms),s("Load of the workers",o.load==null?"–":`${Math.round(o.load*100)} %`,t.silent_workers?`${t.silent_workers} do not answer`:`${t.workers.length} answer`,n.load),s("Dispatches that succeeded",i,l,[]),s("Dispatch to agent",b(o.dispatch_s),"median of the last 20",n.dispatch_s),s("Voice to voice",b(o.voice_to_voice_s),`median of ${t.turns} turns`,n.voice_to_voice_s),...o.memory_backlog==null?[]:[s("Memory backlog",String(o.memory_backlog),"turns on their way to Letta",n.memory_backlog)]),r("h4",{},"Rooms"),d(["room","callers","agents"],t.rooms.map(a=>[a.name,String(a.callers),a.agents.join(", ")||"none"]),"No room is open."),r("h4",{},"Workers"),d(["agent name","worker","jobs","load"],t.workers.map(a=>[a.name,a.id,String(a.jobs),`${Math.round(a.load*100)} %`]),"No worker answers: an agent that is dispatched now will not come."),r("h4",{},"Parts"),d(["part","state","address","memory"],t.parts.map(a=>[a.name,a.state,a.address,a.memory]),"")]}var E={render({model:t,el:o}){let n=r("div",{class:"lv-body"});o.append(r("div",{class:"labvoice-monitor"},r("style",{},c),n));let e=()=>n.replaceChildren(...w(t.get("snapshot")));return t.on("change:snapshot",e),e(),()=>t.off("change:snapshot",e)}};export{E as default};
