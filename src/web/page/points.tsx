import { useEffect, useState } from 'preact/hooks';
import { humanBytes } from '../../view/progress-meter.js';
import { printable } from '../../view/words.js';
import type { PointList } from '../messages.js';
import { fieldText } from './fields.js';
import type { PointVerb } from './proposal.js';
import { ask } from './store.js';

type PointInfo = PointList['disks'][number]['points'][number];

/** Points in time of the server's disks; `version` changes when they may have. */
export function Points({
  server,
  version,
  isReadOnly,
  onPlan,
}: {
  server: string;
  version: string;
  isReadOnly: boolean;
  onPlan: (verb: PointVerb, name: string) => void;
}) {
  const [list, setList] = useState<PointList>();
  const [error, setError] = useState('');
  useEffect(() => {
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
  const points = list?.disks.flatMap((disk) => disk.points.map((point) => ({ disk, point }))) ?? [];
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    onPlan('create', fieldText(new FormData(event.currentTarget as HTMLFormElement), 'name'));
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
  onPlan: (verb: PointVerb, name: string) => void;
}) {
  const { name, created, state, node, bytes, why } = point;
  const button = (verb: PointVerb, text: string) => (
    <button type="button" aria-label={`${text} ${printable(name)}`} onClick={() => onPlan(verb, name)}>
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
        {state}
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
