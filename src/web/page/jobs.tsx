import type { Image, Job, View } from '../../view/model.js';
import { verbText } from '../../view/plan/copies.js';
import type { Action } from '../../view/plan/types.js';
import { flowText, printable, progressText, stageLines } from '../../view/words.js';
import type { JobEnd } from '../messages.js';

/** Jobs as they go, with what their states take. */
export function Jobs({
  view,
  ended,
  onPlan,
  isReadOnly,
}: {
  view: View;
  ended: readonly JobEnd[];
  onPlan: (action: Action) => void;
  isReadOnly: boolean;
}) {
  const images = new Map(view.images.map((image) => [image.id, image]));
  return (
    <section aria-label="jobs" class="jobs">
      <h2>Jobs</h2>
      {view.jobs.length === 0 && <p class="quiet">None.</p>}
      {view.jobs.map((job) => (
        <JobRow key={job.id} view={view} job={job} images={images} onPlan={onPlan} isReadOnly={isReadOnly} />
      ))}
      {ended.length > 0 && (
        <details>
          <summary>{ended.length} ended</summary>
          <ul>
            {ended
              .slice(-SHOWN_ENDED)
              .reverse()
              .map(({ id, type, state, error }, i) => (
                <li key={ended.length - i} class={state === 'failed' ? 'error' : ''}>
                  {printable(`${type} ${id}: ${state}`)}
                  {error === undefined ? '' : `: ${printable(error)}`}
                </li>
              ))}
          </ul>
        </details>
      )}
    </section>
  );
}

const SHOWN_ENDED = 50;

function JobRow({
  view,
  job,
  images,
  onPlan,
  isReadOnly,
}: {
  view: View;
  job: Job;
  images: ReadonlyMap<string, Image>;
  onPlan: (action: Action) => void;
  isReadOnly: boolean;
}) {
  const { id, type, percent, phase, error, verbs } = job;
  return (
    <article class="job-row">
      <h3>
        {printable(`${type} ${id}`)} <span class="flow">{flowText(job, images)}</span>
      </h3>
      <progress max={100} value={percent} aria-label={printable(`${type} ${id}`)} />
      <p class="figures">
        {progressText(job)}
        {'  '}
        <span class="quiet">{printable(phase)}</span>
      </p>
      {stageLines(job).length > 0 && <p class="quiet">{stageLines(job).join(' → ')}</p>}
      {error !== undefined && (
        <p class="error" role="alert">
          {printable(error)}
        </p>
      )}
      {!isReadOnly && (
        <>
          <ul class="verbs">
            {verbs
              .filter((verb) => verb !== 'set-speed')
              .map((verb) => (
                <li key={verb}>
                  <button
                    type="button"
                    aria-describedby={meaningId(id, verb)}
                    onClick={() => onPlan({ kind: 'job', job: id, verb })}
                  >
                    {verb}
                  </button>{' '}
                  <span class="quiet" id={meaningId(id, verb)}>
                    {verbText(view, job, verb, 0)}
                  </span>
                </li>
              ))}
          </ul>
          {verbs.includes('set-speed') && <Speed job={job} onPlan={onPlan} />}
        </>
      )}
    </article>
  );
}

/** An element's: without spaces, whatever a job is called. */
function meaningId(job: string, verb: string): string {
  return encodeURIComponent(`${verb} ${printable(job)}`);
}

const MiB = 1024 * 1024;

function Speed({ job, onPlan }: { job: Job; onPlan: (action: Action) => void }) {
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const value = new FormData(event.currentTarget as HTMLFormElement).get('speed');
    onPlan({ kind: 'job', job: job.id, verb: 'set-speed', speed: Math.round(Number(value) * MiB) });
  };
  return (
    <form onSubmit={submit}>
      <label>
        at most MiB/s{' '}
        <input name="speed" type="number" min="0" step="any" defaultValue={String(job.speedLimit / MiB)} />
      </label>
      <button type="submit">set</button>
    </form>
  );
}
