import { useEffect, useState } from 'preact/hooks';
import { humanBytes } from '../../view/progress-meter.js';
import { printable } from '../../view/words.js';
import type { PointList } from '../messages.js';
import { fieldText } from './fields.js';
import type { PointRequest, PointVerb } from './proposal.js';
import { ask } from './store.js';

type PointInfo = PointList['disks'][number]['points'][number];

/** A point, and the disk that has it. */
export interface DiskPoint {
  readonly disk: PointList['disks'][number];
  readonly point: PointInfo;
}

export function pointsOf(list: PointList | undefined): DiskPoint[] {
  return list?.disks.flatMap((disk) => disk.points.map((point) => ({ disk, point }))) ?? [];
}

/** Points in time of the server's disks; `version` changes when they may have, and is missing before anything is seen. */
export function usePoints(
  server: string,
  version: string | undefined,
): { list: PointList | undefined; error: string } {
  const [list, setList] = useState<PointList>();
  const [error, setError] = useState('');
  useEffect(() => {
    if (version === undefined) return undefined;
    let isOld = false;
    const told = (set: () => void): void => {
      if (!isOld) set();
    };
    ask<PointList>('points', { server, verb: 'list' }).then(
      (answer) => told(() => (setList(answer), setError(''))),
      (reason: Error) => told(() => setError(reason.message)),
    );
    return () => void (isOld = true);
  }, [server, version]);
  return { list, error };
}

export function Points({
  list,
  error,
  isReadOnly,
  onPlan,
}: {
  list: PointList | undefined;
  error: string;
  isReadOnly: boolean;
  onPlan: (request: PointRequest) => void;
}) {
  const points = pointsOf(list);
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const data = new FormData(event.currentTarget as HTMLFormElement);
    const [keep, quiesce] = [fieldText(data, 'keep'), fieldText(data, 'quiesce')];
    onPlan({
      ...{ verb: 'create', name: fieldText(data, 'name') },
      ...(keep !== '' && { keep: Number(keep) }),
      ...(quiesce !== '' && { quiesce }),
    });
  };
  return (
    <section aria-label="points in time">
      <h2>Points in time</h2>
      {error !== '' && <p class="quiet">{printable(error)}</p>}
      {list && points.length === 0 && <p class="quiet">None.</p>}
      {list?.disks.flatMap(({ disk, 'active-elsewhere': elsewhere }) =>
        elsewhere === undefined
          ? []
          : [
              <p key={disk} class="warning">
                {printable(`What is open of disk ${disk} is not its active image, which is ${elsewhere}.`)}
              </p>,
            ],
      )}
      {points.length > 0 && (
        <div class="wide-table">
          <table>
            <thead>
              <tr>
                {['point', 'disk', 'made', 'held by', 'state', ''].map((head) => (
                  <th key={head} scope="col">
                    {head === '' ? <span class="unseen">what can be done</span> : head}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {points.map(({ disk, point }) => (
                <PointRow
                  key={`${disk.node} ${point.id}`}
                  disk={disk.disk}
                  point={point}
                  isReadOnly={isReadOnly}
                  onPlan={onPlan}
                />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {list && !isReadOnly && (
        <form onSubmit={submit}>
          <label>
            a name for this moment{' '}
            <input name="name" required maxLength={64} autocomplete="off" spellcheck={false} />
          </label>
          <button type="submit" class="main">
            make a point
          </button>
          <details>
            <summary>more</summary>
            <p>
              <label>
                keep the newest <input name="keep" type="number" min="1" max="1000" /> and delete older ones
              </label>
            </p>
            <p>
              <label>
                freeze the guest's file systems by its agent's socket{' '}
                <input name="quiesce" autocomplete="off" spellcheck={false} placeholder="agent.sock" />
              </label>
            </p>
          </details>
        </form>
      )}
    </section>
  );
}

function PointRow({
  disk,
  point,
  isReadOnly,
  onPlan,
}: {
  disk: string;
  point: PointInfo;
  isReadOnly: boolean;
  onPlan: (request: PointRequest) => void;
}) {
  const { name, created, state, node, bytes, why } = point;
  const button = (verb: PointVerb, text: string) => (
    <button type="button" aria-label={`${text} ${printable(name)}`} onClick={() => onPlan({ verb, name })}>
      {text}
    </button>
  );
  return (
    <tr>
      <th scope="row">{printable(name)}</th>
      <td>{printable(disk)}</td>
      <td>{new Date(created * 1000).toLocaleString()}</td>
      <td>
        {node === undefined ? '–' : printable(node)}
        {bytes !== undefined && `, ${humanBytes(bytes)}`}
      </td>
      <td class={state === 'lost' ? 'warning' : ''}>
        {printable(state)}
        {why !== undefined && `: ${printable(why)}`}
      </td>
      <td>
        {!isReadOnly && (
          <div class="buttons">
            {state === 'usable' && button('revert', 'go back')}
            {button('delete', 'delete')}
          </div>
        )}
      </td>
    </tr>
  );
}
