import { useEffect, useRef, useState } from 'preact/hooks';
import { printable } from '../../view/words.js';
import { Picture } from './picture.js';
import type { Proposal, Shown } from './proposal.js';

/** What an action will do, before it is done: in words, before and after, and as commands. */
export function PlanView({
  proposal,
  isReadOnly,
  onClose,
  onFailedUnseen,
}: {
  proposal: Proposal;
  isReadOnly: boolean;
  onClose: () => void;
  /** The plan was closed before it failed. */
  onFailedUnseen: (error: string) => void;
}) {
  const [plan, setPlan] = useState<Shown>();
  const [error, setError] = useState('');
  const [isRunning, setRunning] = useState(false);
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    dialog.current?.showModal();
    proposal.plan().then(setPlan, (reason: Error) => setError(reason.message));
  }, []);
  // A dialog that is closed, and not just gone, gives the focus back to who asked for it.
  const close = (): void => dialog.current?.close();
  const run = async (): Promise<void> => {
    setRunning(true);
    setError('');
    try {
      await proposal.run();
      close();
    } catch (reason) {
      if (dialog.current?.open !== true) return onFailedUnseen((reason as Error).message);
      setError((reason as Error).message);
      // Of what has changed since, the plan is another.
      await proposal.plan().then(setPlan, () => undefined);
      setRunning(false);
    }
  };
  return (
    <dialog ref={dialog} onClose={onClose} aria-labelledby="plan-title" class="plan">
      <h2 id="plan-title">{printable(proposal.title)}</h2>
      {error !== '' && (
        <p class="error" role="alert">
          {printable(error)}
        </p>
      )}
      {plan && <PlanBody plan={plan} />}
      {!plan && error === '' && <p class="quiet">Planning…</p>}
      <div class="buttons">
        {plan && !isReadOnly && (
          <button type="button" class="main" disabled={isRunning} onClick={() => void run()}>
            Do it
          </button>
        )}
        <button type="button" onClick={close}>
          Close
        </button>
        {isRunning && error === '' && (
          <span class="quiet" role="status">
            Asked of the server; it goes on when this is closed.
          </span>
        )}
      </div>
    </dialog>
  );
}

function PlanBody({ plan }: { plan: Shown }) {
  const { words, facts, invalid, undo, pictures, commands } = plan;
  return (
    <>
      <ul>
        {words.map((sentence) => (
          <li key={sentence}>{printable(sentence)}</li>
        ))}
      </ul>
      {facts.map((fact) => (
        <p key={fact}>{printable(fact)}</p>
      ))}
      {invalid.length > 0 && <p class="warning">Not valid afterwards: {invalid.map(printable).join('; ')}</p>}
      {undo !== undefined && <p class="quiet">To undo it: {printable(undo)}</p>}
      {pictures && (
        <>
          <h3>Now</h3>
          <Picture view={pictures.before} label="picture of now" />
          <h3>Then</h3>
          <Picture view={pictures.after} label="picture of then" />
        </>
      )}
      <h3>QMP</h3>
      <pre role="region" tabIndex={0} aria-label="commands">
        {commands
          .map(({ text, afterReady }) => `${afterReady === true ? '# when the job is ready:\n' : ''}${text}`)
          .join('\n')}
      </pre>
      <button
        type="button"
        onClick={() => void navigator.clipboard.writeText(commands.map(({ text }) => text).join('\n'))}
      >
        Copy commands
      </button>
    </>
  );
}
