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
`;function o(t,i={},...r){let e=document.createElement(t);for(let[a,s]of Object.entries(i))typeof s=="function"?e.addEventListener(a,s):s!==!1&&e.setAttribute(a,s===!0?"":s);return e.append(...r.filter(a=>a!==null)),e}var u="http://www.w3.org/2000/svg";function h(t,i,r){let e=Math.max(...t.map(n=>n??0),0),a=i/Math.max(1,t.length-1),s="M",m="";return t.forEach((n,g)=>{if(n===null){s="M";return}let f=e>0?r-n/e*(r-2)-1:r-1;m+=`${s}${(g*a).toFixed(1)},${f.toFixed(1)}`,s="L"}),m}function p(t,i,r){let e=document.createElementNS(u,"svg");e.setAttribute("viewBox",`0 0 ${i} ${r}`),e.setAttribute("preserveAspectRatio","none"),e.setAttribute("aria-hidden","true");let a=document.createElementNS(u,"path");return a.setAttribute("d",h(t,i,r)),e.append(a),e}var b=t=>t==null?"–":`${Math.round(t*1e3)} ms`;function l(t,i,r,e){let a=o("div",{class:"lv-tile"},o("span",{},t),o("b",{},i));return a.append(p(e??[],120,28),o("small",{},r)),a}function d(t,i,r){return i.length?o("table",{},o("thead",{},o("tr",{},...t.map(e=>o("th",{scope:"col"},e)))),o("tbody",{},...i.map(e=>o("tr",{},...e.map(a=>o("td",{},a)))))):o("p",{class:"lv-none"},r)}function w(t){let i=t.trouble?[o("p",{class:"lv-trouble",role:"alert"},t.trouble)]:[];if(t.running===void 0)return[...i,o("p",{},"looking…")];if(!t.running)return[o("p",{},"The lab is not running any more.")];let{figures:r,series:e}=t,a=t.dispatches-t.failed,s=t.dispatches?`${Math.round(100*a/t.dispatches)} %`:"–",m=t.failed?`${t.failed} failed, the last: ${t.last_failure}`:"none failed";return[...i,o("div",{class:"lv-tiles"},l("Rooms",String(r.rooms),`${r.agents} agents in them`,e.rooms),l("Load of the workers",r.load==null?"–":`${Math.round(r.load*100)} %`,t.silent_workers?`${t.silent_workers} do not answer`:`${t.workers.length} answer`,e.load),l("Dispatches that succeeded",s,m,e.success),l("Dispatch to agent",b(r.dispatch_s),"median of the last 20",e.dispatch_s),l("Voice to voice",b(r.voice_to_voice_s),t.turns?`median of the last 20 of ${t.turns} turns`:"no turn yet",e.voice_to_voice_s),...r.memory_backlog==null?[]:[l("Memory backlog",String(r.memory_backlog),"turns on their way to Letta",e.memory_backlog)]),o("h4",{},"Rooms"),d(["room","callers","agents"],t.rooms.map(n=>[n.name,String(n.callers),n.agents.join(", ")||"none"]),"No room is open."),o("h4",{},"Workers"),d(["agent name","worker","jobs","load"],t.workers.map(n=>[n.name,n.id,String(n.jobs),`${Math.round(n.load*100)} %`]),"No worker answers: an agent that is dispatched now will not come."),o("h4",{},"Parts"),d(["part","state","address","memory"],t.parts.map(n=>[n.name,n.state,n.address,n.memory]),"")]}var E={render({model:t,el:i}){let r=o("div",{class:"lv-body"});i.append(o("div",{class:"labvoice-monitor"},o("style",{},c),r));let e=()=>r.replaceChildren(...w(t.get("snapshot")));return t.on("change:snapshot",e),e(),()=>t.off("change:snapshot",e)}};export{E as default};
