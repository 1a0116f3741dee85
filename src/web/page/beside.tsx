import { useState } from 'preact/hooks';
import { imageOf, type View } from '../../view/model.js';
import { humanBytes } from '../../view/progress-meter.js';
import { bracketed, printable } from '../../view/words.js';
import type { Beside } from '../messages.js';
import { ask } from './store.js';

/** Images beside the chains that the server does not have open, looked for on request. */
export function BesideView({ server, view }: { server: string; view: View }) {
  const [beside, setBeside] = useState<Beside>();
  const [error, setError] = useState('');
  const [isLooking, setLooking] = useState(false);
  const look = async (): Promise<void> => {
    setLooking(true);
    try {
      setBeside(await ask<Beside>('beside', { server }));
      setError('');
    } catch (reason) {
      setError((reason as Error).message);
    } finally {
      setLooking(false);
    }
  };
  return (
    <section aria-label="files beside">
      <h2>Files beside the chains</h2>
      <div class="buttons">
        <button type="button" disabled={isLooking} onClick={() => void look()}>
          look for files that nobody uses
        </button>
        {beside && (
          <span class="quiet" role="status">
            {beside.files.length === 0
              ? 'None'
              : beside.files.length === 1
                ? '1 image'
                : `${beside.files.length} images`}{' '}
            in{' '}
            {beside.folders.length === 0
              ? 'no folder that was given'
              : beside.folders.map(printable).join(', ')}
            {beside.isCut ? ', and more files than were looked at' : ''}
          </span>
        )}
      </div>
      {error !== '' && (
        <p class="error" role="alert">
          {printable(error)}
        </p>
      )}
      {beside && beside.files.length > 0 && (
        <div class="wide-table" tabIndex={0} role="region" aria-label="files beside the chains">
          <table>
            <thead>
              <tr>
                <th scope="col">file</th>
                <th scope="col">format</th>
                <th scope="col">takes</th>
                <th scope="col">stands on</th>
              </tr>
            </thead>
            <tbody>
              {beside.files.map(({ file, format, bytes, backing, standsOn }) => (
                <tr key={file}>
                  <th scope="row">{printable(file)}</th>
                  <td>{printable(format)}</td>
                  <td>{humanBytes(bytes)}</td>
                  <td class={standsOn === undefined ? '' : 'warning'}>
                    {basisText(view, standsOn, backing)}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function basisText(view: View, standsOn: string | undefined, backing: string | undefined): string {
  if (standsOn === undefined)
    return backing === undefined ? 'nothing: it is unused here' : printable(backing);
  const image = imageOf(view, standsOn);
  return `${image ? bracketed(image) : printable(standsOn)}: what changes that one spoils it`;
}
