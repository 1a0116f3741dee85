import { BlockError, toBlockError } from '../../base/error.js';
import { listed } from '../../view/plan/checks.js';
import { closing } from '../../view/plan/closing.js';
import type { Plan, PlannedCommand } from '../../view/plan/types.js';
import { textOf } from '../../view/answers.js';
import type { PointDisk } from './disks.js';
import type { PointServer } from './server.js';

/**
 * What closes images that are in the way of a new active one. Errors: busy, where others have opened one: only they know
 * whether it is needed.
 */
export function closingAbove(disk: PointDisk): Pick<Plan, 'words' | 'commands'> {
  const { leftOpen, openedByOthers: others } = disk;
  if (others.length === 0) return closing(leftOpen);
  const order = others.length > 1 ? ', in this order' : '';
  const text = `${listed(others)}, which nobody uses, ${others.length > 1 ? 'are' : 'is'} open above '${disk.node}'`;
  throw new BlockError('busy', `${text}: close what is not needed with blockdev-del${order}, and ask again`);
}

/** What is sent, and which images that has closed: where the rest fails, its error says so. */
export class SentCommands {
  readonly #closed: string[] = [];

  /** One after the other. Errors: the server's. */
  async send(server: PointServer, commands: readonly PlannedCommand[]): Promise<void> {
    for (const { execute, arguments: args, mayBeGone } of commands) {
      const answer = server.execute(execute, args);
      if (mayBeGone !== true) await answer;
      else
        await answer.then(
          () => this.#closed.push(textOf(args['node-name']) ?? ''),
          () => undefined,
        );
    }
  }

  /** Errors: those of `body`, with what has been closed. */
  async during<T>(body: () => Promise<T>): Promise<T> {
    try {
      return await body();
    } catch (cause) {
      if (this.#closed.length === 0) throw cause;
      const { kind, message } = toBlockError(cause);
      const names = this.#closed.map((id) => `'${id}'`).join(', ');
      const text = `${names}, which the disk had left, ${this.#closed.length > 1 ? 'have' : 'has'} been closed`;
      throw new BlockError(kind, `${message}; ${text}`, { cause });
    }
  }
}
