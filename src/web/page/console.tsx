import { useState } from 'preact/hooks';
import { fieldText } from './fields.js';
import { ask } from './store.js';

/** QMP by hand, where --console allows it: a command's name, and its arguments as JSON. */
export function Console({ server }: { server: string }) {
  const [lines, setLines] = useState<string[]>([]);
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const line = fieldText(new FormData(form), 'line');
    const [, execute = '', rest = ''] = /^(\S+)\s*(.*)$/s.exec(line) ?? [];
    try {
      const args = rest === '' ? {} : (JSON.parse(rest) as object);
      const answer = await ask<{ return: unknown }>('command', { server, execute, arguments: args });
      setLines((old) => [...old, `> ${line}`, JSON.stringify(answer.return, undefined, 1)]);
    } catch (error) {
      setLines((old) => [...old, `> ${line}`, (error as Error).message]);
    }
    form.reset();
  };
  return (
    <section aria-label="console">
      <h2>QMP</h2>
      <pre role="log" tabIndex={0} aria-label="answers">
        {lines.slice(-100).join('\n')}
      </pre>
      <form onSubmit={(event) => void submit(event)}>
        <label>
          command{' '}
          <input
            name="line"
            class="wide"
            autocomplete="off"
            spellcheck={false}
            placeholder='query-jobs, or block-job-cancel {"device": "job0"}'
          />
        </label>
        <button type="submit">send</button>
      </form>
    </section>
  );
}
