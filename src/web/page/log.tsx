import { useState } from 'preact/hooks';
import { printable } from '../../view/words.js';
import type { LogEntry } from '../messages.js';

const SHOWN = 200;

/** All events and commands, the newest first. */
export function Log({ log }: { log: readonly LogEntry[] }) {
  const [filter, setFilter] = useState('');
  const lines = log.map((entry) => ({ entry, text: textOf(entry) }));
  const found = lines.filter(({ text }) => text.toLowerCase().includes(filter.toLowerCase()));
  return (
    <section aria-label="log">
      <h2>Log</h2>
      <div class="buttons">
        <label>
          filter{' '}
          <input type="search" value={filter} onInput={(event) => setFilter(event.currentTarget.value)} />
        </label>
        <a href="/api/log" download>
          download
        </a>
      </div>
      <ol class="log" tabIndex={0} aria-label="events and commands, the newest first">
        {found
          .slice(-SHOWN)
          .reverse()
          .map(({ entry, text }, i) => (
            <li key={found.length - i} class={entry.kind}>
              <time>{new Date(entry.timeMs).toLocaleTimeString()}</time> {text}
            </li>
          ))}
      </ol>
    </section>
  );
}

function textOf({ server, kind, name, data, text }: LogEntry): string {
  const what = data === undefined ? '' : ` ${JSON.stringify(data)}`;
  return printable(
    `${server} ${kind === 'command' ? '> ' : ''}${name}${what}${text === undefined ? '' : `: ${text}`}`,
  );
}
