import { render } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { imageOf, type View } from '../../view/model.js';
import type { Action } from '../../view/plan/types.js';
import { printable, warningLines } from '../../view/words.js';
import { MapView } from './cluster-map.js';
import { Console } from './console.js';
import { History } from './history.js';
import { ImagePanel } from './image-panel.js';
import { Jobs } from './jobs.js';
import { Log } from './log.js';
import { Picture } from './picture.js';
import { PlanView } from './plan-view.js';
import { Plots } from './plots.js';
import { Points } from './points.js';
import { type Done, proposeAction, proposePoint, type Proposal } from './proposal.js';
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
  const version = useRef(0);
  useEffect(() => {
    follow(setStore, (state) => {
      version.current++;
      historyOf(state.name).add(state);
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
            : 'the page has lost livedisk web; it tries again'}
        </span>
      </header>
      {name !== undefined && <Server key={name} name={name} store={store} version={version.current} />}
    </>
  );
}

function Server({ name, store, version }: { name: string; store: Store; version: number }) {
  const [chosen, setChosen] = useState<string>();
  const [proposal, setProposal] = useState<Proposal>();
  const [done, setDone] = useState<Done[]>([]);
  const [mapped, setMapped] = useState<string>();
  const state = store.states[name];
  const history = historyOf(name);
  history.mark(store.log, name);
  const { view, error } = state ?? {};
  const image = view && imageOf(view, chosen);
  const onDone = (one: Done): void => setDone((all) => [one, ...all].slice(0, KEPT_DONE));
  const onPlan = (action: Action): void => {
    if (view) setProposal(proposeAction(name, view, action, onDone));
  };
  const warnings = view ? warningLines(view) : [];
  return (
    <main>
      {error !== undefined && (
        <p class="error" role="alert">
          {printable(error)}
          {view ? ' What is below is old.' : ''}
        </p>
      )}
      {!view && error === undefined && <p class="quiet">Looking…</p>}
      {view && (
        <>
          <section aria-label="chains">
            <h2>
              {printable(view.server.name)}
              {view.server.runState === undefined ? '' : `, ${view.server.runState}`}
            </h2>
            <Picture view={view} chosen={chosen} onChoose={setChosen} />
            {warnings.length > 0 && (
              <ul class="warnings">
                {warnings.map((line) => (
                  <li key={line} class="warning">
                    {line}
                  </li>
                ))}
              </ul>
            )}
          </section>
          {image && (
            <ImagePanel
              key={image.id}
              view={view}
              image={image}
              onPlan={onPlan}
              onMap={() => setMapped(image.id)}
              onClose={() => setChosen(undefined)}
            />
          )}
          {mapped !== undefined && (
            <MapView server={name} view={view} image={mapped} onClose={() => setMapped(undefined)} />
          )}
          <DoneList done={done} onUndo={(undo) => setProposal(undo(view))} />
          <Points
            server={name}
            version={pointsVersion(view, store, name)}
            isReadOnly={store.isReadOnly}
            onPlan={(verb, point) => setProposal(proposePoint(name, verb, point, onDone))}
          />
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
            />
          )}
        </>
      )}
      <Log log={store.log} />
      {store.hasConsole && <Console server={name} />}
    </main>
  );
}

const KEPT_DONE = 5;

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
        {done.map(({ title, undo }, i) => (
          <li key={done.length - i}>
            {printable(title)}{' '}
            {undo ? (
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

/** Chains, jobs and deletions: points change with them. */
function pointsVersion({ chains, jobs }: View, { log }: Store, server: string): string {
  const told = log.filter((entry) => entry.server === server && /point/.test(entry.name)).length;
  return JSON.stringify([chains.map(({ images }) => images), jobs.map(({ id }) => id), told]);
}

const root = document.getElementById('app');
if (root) {
  root.replaceChildren();
  render(<App />, root);
}
