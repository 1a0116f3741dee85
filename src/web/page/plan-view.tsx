import { useEffect, useRef, useState } from 'preact/hooks';
import type { Action, Plan } from '../../view/plan/types.js';
import { bracketed } from '../../view/words.js';
import type { View } from '../../view/model.js';
import { Picture } from './picture.js';
import { ask } from './store.js';

/** What an action will do, before it is done: in words, before and after, and as commands. */
export function PlanView({
  server,
  view,
  action,
  isReadOnly,
  onClose,
}: {
  server: string;
  view: View;
  action: Action;
  isReadOnly: boolean;
  onClose: () => void;
}) {
  const [plan, setPlan] = useState<Plan>();
  const [error, setError] = useState('');
  const [isRunning, setRunning] = useState(false);
  const dialog = useRef<HTMLDialogElement>(null);
  // What it was when it was planned stays to be seen while it changes.
  const [before] = useState(view);
  useEffect(() => {
    dialog.current?.showModal();
    ask<Plan>('plan', { server, action }).then(setPlan, (reason: Error) => setError(reason.message));
  }, []);
  const run = async (): Promise<void> => {
    setRunning(true);
    setError('');
    try {
      await ask('run', { server, action });
      onClose();
    } catch (reason) {
      setError((reason as Error).message);
      setRunning(false);
    }
  };
  return (
    <dialog ref={dialog} onClose={onClose} aria-labelledby="plan-title" class="plan">
      <h2 id="plan-title">
        {action.kind === 'job' ? `${action.verb} job ${action.job}` : titleOf(action, before)}
      </h2>
      {error !== '' && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      {plan && <PlanBody plan={plan} before={before} />}
      {!plan && error === '' && <p class="quiet">Planning…</p>}
      <div class="buttons">
        {plan && !isReadOnly && (
          <button type="button" class="main" disabled={isRunning} onClick={() => void run()}>
            Do it
          </button>
        )}
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </dialog>
  );
}

function titleOf(action: Action, view: View): string {
  const image = 'image' in action ? view.images.find(({ id }) => id === action.image) : undefined;
  return image ? `${action.kind} ${bracketed(image)}` : action.kind;
}

function PlanBody({ plan, before }: { plan: Plan; before: View }) {
  const commands = plan.commands.map(({ execute, arguments: args }) =>
    JSON.stringify({ execute, arguments: args }),
  );
  const hasPicture = plan.action.kind !== 'job';
  return (
    <>
      <ul>
        {plan.words.map((sentence) => (
          <li key={sentence}>{sentence}</li>
        ))}
      </ul>
      {plan.invalid.length > 0 && (
        <p class="warning">
          Not valid afterwards: {plan.invalid.map(({ id, why }) => `[${id}] ${why}`).join('; ')}
        </p>
      )}
      {plan.undo !== undefined && <p class="quiet">To undo it: {plan.undo}</p>}
      {hasPicture && <h3>Now</h3>}
      {hasPicture && <Picture view={before} />}
      {hasPicture && <h3>Then</h3>}
      {hasPicture && <Picture view={plan.after} />}
      <h3>QMP</h3>
      <pre role="region" tabIndex={0} aria-label="commands">
        {commands
          .map(
            (text, i) =>
              `${plan.commands[i]?.afterReady === true ? '# when the job is ready:\n' : ''}${text}`,
          )
          .join('\n')}
      </pre>
      <button type="button" onClick={() => void navigator.clipboard.writeText(commands.join('\n'))}>
        Copy commands
      </button>
    </>
  );
}
