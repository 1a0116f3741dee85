import type { QmpClient } from '../../wire/qmp/client.js';
import type { JsonObject } from '../../schema/types.js';

const ENDING = /^(block-job-(complete|cancel|finalize)|job-(complete|cancel|finalize))$/;
const HUMAN_ENDING = /^block_job_(?:complete|cancel)\s+(?:-f\s+)?(\S+)$/;

/** Jobs that this connection has told to end: until they have, they may still be "ready", or "pending". */
export class EndingJobs {
  readonly #ids = new Set<string>();

  constructor(client: QmpClient) {
    client.onEvent(({ event, data: { id, status } }) => {
      const isNew = event === 'JOB_STATUS_CHANGE' && status === 'created';
      if (isNew && typeof id === 'string') this.#ids.delete(id);
    });
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  /** A request that the server has accepted. */
  note({ execute, arguments: data }: JsonObject): void {
    if (typeof execute !== 'string' || !ENDING.test(execute)) return;
    const { id, device } = data as { id?: string; device?: string };
    this.#ids.add(id ?? device ?? '');
  }

  /** A line of the human monitor that went well. */
  noteLine(text: string): void {
    const id = HUMAN_ENDING.exec(text)?.[1];
    if (id !== undefined) this.#ids.add(id);
  }
}
