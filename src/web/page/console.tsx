import { useEffect, useRef, useState } from 'preact/hooks';
import { printable, printableJson, printableLines } from '../../view/words.js';
import { ask, askToChange } from './store.js';

/** Words that may stand at the end of `line`, in place of `part`. */
interface Fitting {
  readonly line: string;
  readonly words: readonly string[];
  readonly part: string;
}

const NOTHING: Fitting = { line: '', words: [], part: '' };
const KEPT_LINES = 100;
const SHOWN_WORDS = 20;

/** QMP by hand, where --console allows it: as in the shell, `command key=value`, or JSON. */
export function Console({ server }: { server: string }) {
  const [lines, setLines] = useState<string[]>([]);
  const [line, setLine] = useState('');
  const [fitting, setFitting] = useState<Fitting>(NOTHING);
  const [history, setHistory] = useState<readonly string[]>(readHistory);
  /** How far back: 0 is what is typed now. */
  const [back, setBack] = useState(0);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    let isOld = false;
    ask<Omit<Fitting, 'line'>>('complete', { server, line }).then(
      (answer) => {
        if (!isOld) setFitting({ line, ...answer });
      },
      () => undefined,
    );
    return () => void (isOld = true);
  }, [server, line]);
  const put = (text: string): void => {
    setLine(text);
    input.current?.focus();
  };
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    if (line.trim() === '') return;
    const said = line;
    setLine('');
    setBack(0);
    setHistory(keepLine(history, said));
    const tell = (text: string): void => setLines((old) => [...old, `> ${said}`, text].slice(-KEPT_LINES));
    try {
      const answer = await askToChange<{ return: unknown }>('command', { server, line: said });
      tell(printableJson(answer.return, 1));
    } catch (error) {
      tell((error as Error).message);
    }
  };
  const known = fitting.line === line ? fitting : NOTHING;
  const shown = line === '' ? [] : known.words;
  const onKeyDown = (event: KeyboardEvent): void => {
    const step = event.key === 'ArrowUp' ? 1 : event.key === 'ArrowDown' ? -1 : 0;
    const next = back + step;
    if (step !== 0 && next >= 0 && next <= history.length) {
      event.preventDefault();
      setBack(next);
      setLine(next === 0 ? '' : (history.at(-next) ?? ''));
    }
    // Where there is nothing to complete, Tab goes on to the next element, as everywhere.
    const longer = event.key === 'Tab' && !event.shiftKey ? completed(line, known) : line;
    if (longer !== line) {
      event.preventDefault();
      setLine(longer);
    }
  };
  return (
    <section aria-label="console">
      <h2>QMP</h2>
      <pre role="log" tabIndex={0} aria-label="answers">
        {printableLines(lines.join('\n'))}
      </pre>
      <form onSubmit={(event) => void submit(event)}>
        <label>
          command{' '}
          <input
            ref={input}
            name="line"
            class="wide"
            autocomplete="off"
            spellcheck={false}
            value={line}
            onInput={(event) => setLine(event.currentTarget.value)}
            onKeyDown={onKeyDown}
            placeholder="query-jobs, or block-job-cancel device=job0"
          />
        </label>
        <button type="submit">send</button>
      </form>
      <div class="buttons fitting" role="group" aria-label="what fits">
        {shown.slice(0, SHOWN_WORDS).map((word) => (
          <button key={word} type="button" onClick={() => put(withWord(line, known.part, word))}>
            {printable(word)}
          </button>
        ))}
        {shown.length > SHOWN_WORDS && <span class="quiet">and more</span>}
      </div>
    </section>
  );
}

/** The line with what all words that fit begin with; a whole word when only one does. */
function completed(line: string, { words, part }: Fitting): string {
  const [first = '', ...others] = words;
  if (first === '') return line;
  if (others.length === 0) return withWord(line, part, first);
  let common = first;
  while (!others.every((word) => word.startsWith(common))) common = common.slice(0, -1);
  return line.slice(0, line.length - part.length) + common;
}

function withWord(line: string, part: string, word: string): string {
  return `${line.slice(0, line.length - part.length)}${word}${/[=.]$/.test(word) ? '' : ' '}`;
}

const HISTORY_KEY = 'livedisk-console';

/** What was sent before, the oldest first; a browser may keep nothing. */
function readHistory(): readonly string[] {
  try {
    const kept = JSON.parse(localStorage.getItem(HISTORY_KEY) ?? '[]') as unknown;
    return Array.isArray(kept) ? kept.filter((one): one is string => typeof one === 'string') : [];
  } catch {
    return [];
  }
}

/** As in the shell, a line that begins with a space is not kept. */
function keepLine(history: readonly string[], line: string): readonly string[] {
  if (line.startsWith(' ') || history.at(-1) === line) return history;
  const kept = [...history, line].slice(-KEPT_LINES);
  try {
    localStorage.setItem(HISTORY_KEY, JSON.stringify(kept));
  } catch {
    // It is kept as long as the page.
  }
  return kept;
}
