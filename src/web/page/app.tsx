import { render } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { imageOf, type View } from '../../view/model.js';
import type { Action } from '../../view/plan/types.js';
import { printable, warningLines } from '../../view/words.js';
import { BesideView } from './beside.js';
import { Chains } from './chains.js';
import { MapView } from './cluster-map.js';
import { Console } from './console.js';
import { afterLook } from './done.js';
import { History } from './history.js';
import { ImagePanel } from './image-panel.js';
import { Jobs } from './jobs.js';
import { Log } from './log.js';
import { PlanView } from './plan-view.js';
import { Plots } from './plots.js';
import { Points, pointsOf, usePoints } from './points.js';
import { type Done, type PointRequest, proposeAction, proposePoint, type Proposal } from './proposal.js';
import { EMPTY, follow, type Store } from './store.js';

const histories = new Map<string, History>();

function historyOf(name: string): History {
  const history = histories.get(name) ?? new History();
  histories.set(name, history);
  return history;
}

function App() {
  const [store, setStore] = useState<Store>(EMPTY);
  const [server, setServer] = useState<string>();
  /** By server, whichever is seen when it is done. */
  const [done, setDone] = useState<Readonly<Record<string, readonly Done[]>>>({});
  const version = useRef(0);
  useEffect(() => {
    follow(setStore, (state) => {
      version.current++;
      historyOf(state.name).add(state);
      setDone((all) => {
        const own = all[state.name];
        return own ? { ...all, [state.name]: own.map((one) => afterLook(one, state)) } : all;
      });
    });
  }, []);
  const name = server ?? store.servers[0];
  return (
    <>
      <header>
        <h1>livedisk</h1>
        <nav aria-label="servers">
          {store.servers.map((one) => (
            <button key={one} type="button" aria-pressed={one === name} onClick={() => setServer(one)}>
              {printable(one)}
            </button>
          ))}
        </nav>
        <span role="status" class={store.isConnected ? 'good' : 'bad'}>
          {store.isConnected
            ? store.isReadOnly
              ? 'looking only'
              : 'connected'
            : store.refusal || 'the page has lost livedisk web; it tries again'}
        </span>
      </header>
      {name !== undefined && (
        <Server
          key={name}
          name={name}
          store={store}
          version={version.current}
          done={done[name] ?? []}
          onDone={(one) =>
            setDone((all) => ({ ...all, [name]: [one, ...(all[name] ?? [])].slice(0, KEPT_DONE) }))
          }
        />
      )}
    </>
  );
}

function Server({
  name,
  store,
  version,
  done,
  onDone,
}: {
  name: string;
  store: Store;
  version: number;
  done: readonly Done[];
  onDone: (one: Done) => void;
}) {
  const [chosen, setChosen] = useState<string>();
  const [proposal, setProposal] = useState<Proposal>();
  const [mapped, setMapped] = useState<string>();
  const state = store.states[name];
  const history = historyOf(name);
  history.mark(store.log, name);
  const { view, error } = state ?? {};
  const image = view && imageOf(view, chosen);
  const onPlan = (action: Action): void => {
    if (view) setProposal(proposeAction(name, view, action, onDone));
  };
  const onPoint = (request: PointRequest): void => setProposal(proposePoint(name, request, onDone));
  const { list, error: listError } = usePoints(name, view && pointsVersion(view, store, name));
  const points = pointsOf(list);
  return (
    <main>
      {error !== undefined && (
        <p class="error" role="alert">
          {printable(error)}
          {view ? '; what is below is old' : ''}
        </p>
      )}
      {!view && error === undefined && <p class="quiet">Looking…</p>}
      {view && (
        <>
          <section aria-label="chains">
            <h2>
              {printable(view.server.name)}
              {view.server.runState === undefined ? '' : `, ${printable(view.server.runState)}`}
            </h2>
            <Chains view={view} chosen={chosen} onChoose={setChosen} />
            <Warnings lines={warningLines(view)} />
          </section>
          {image && (
            <ImagePanel
              key={image.id}
              view={view}
              image={image}
              points={points.filter(({ point }) => point.node === image.id)}
              isReadOnly={store.isReadOnly}
              onPlan={onPlan}
              onPoint={onPoint}
              onMap={() => setMapped(image.id)}
              onClose={() => setChosen(undefined)}
            />
          )}
          {mapped !== undefined && (
            <MapView server={name} view={view} image={mapped} onClose={() => setMapped(undefined)} />
          )}
          <DoneList done={done} onUndo={(undo) => setProposal(undo(view))} />
          <Points list={list} error={listError} isReadOnly={store.isReadOnly} onPlan={onPoint} />
          <Jobs view={view} ended={state?.ended ?? []} onPlan={onPlan} isReadOnly={store.isReadOnly} />
          <Plots
            history={history}
            version={version}
            view={view}
            isReadOnly={store.isReadOnly}
            onPlan={onPlan}
          />
          {proposal && (
            <PlanView
              key={proposal.title}
              proposal={proposal}
              isReadOnly={store.isReadOnly}
              onClose={() => setProposal(undefined)}
              onFailedUnseen={(error) => onDone({ title: proposal.title, error })}
            />
          )}
        </>
      )}
      {view && <BesideView server={name} view={view} />}
      {/* What comes first must not be pushed down by what comes next. */}
      {state && <Log log={store.log} />}
      {state && store.hasConsole && <Console server={name} />}
    </main>
  );
}

const KEPT_DONE = 5;
const SHOWN_WARNINGS = 8;

function Warnings({ lines }: { lines: readonly string[] }) {
  if (lines.length === 0) return null;
  const list = (some: readonly string[]) => (
    <ul class="warnings">
      {some.map((line) => (
        <li key={line} class="warning">
          {line}
        </li>
      ))}
    </ul>
  );
  if (lines.length <= SHOWN_WARNINGS) return list(lines);
  return (
    <details>
      <summary class="warning">{lines.length} warnings</summary>
      {list(lines)}
    </details>
  );
}

/** What was done from this page, with what takes it back. */
function DoneList({
  done,
  onUndo,
}: {
  done: readonly Done[];
  onUndo: (undo: NonNullable<Done['undo']>) => void;
}) {
  if (done.length === 0) return null;
  return (
    <section aria-label="done">
      <h2>Done here</h2>
      <ul class="done">
        {done.map(({ title, undo, error }, i) => (
          <li key={done.length - i}>
            {printable(title)}{' '}
            {error !== undefined ? (
              <span class="error" role="alert">
                failed: {printable(error)}
              </span>
            ) : undo ? (
              <button type="button" onClick={() => onUndo(undo)}>
                take it back<span class="unseen">: {printable(title)}</span>
              </button>
            ) : (
              <span class="quiet">nothing takes it back</span>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** Chains, jobs and deletions: points change with them, and while a server was away. */
function pointsVersion({ chains, jobs }: View, { log }: Store, server: string): string {
  const told = log.filter((entry) => entry.server === server && /point|^connected$/.test(entry.name)).length;
  return JSON.stringify([chains.map(({ images }) => images), jobs.map(({ id }) => id), told]);
}

const root = document.getElementById('app');
if (root) {
  root.replaceChildren();
  render(<App />, root);
}
