import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';
import type { QmpClient, QmpEvent } from '../../wire/qmp/client.js';
import { formatJson, formatJsonPretty, type Writable } from '../../wire/qmp/json-format.js';
import { isForPeople, QmpError, toQmpError } from '../../wire/qmp/registry.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { parseCommandLine, parseWords, splitWords } from './command-line.js';
import { complete } from './completion.js';
import { EndingJobs } from './ending-jobs.js';
import { helpText } from './help.js';
import { liveNames } from './live-names.js';
import { ProgressView, type Screen } from './progress-view.js';
import { ServerSchema } from './server-schema.js';
import { JobWatch } from './wait-job.js';

export interface ShellProperties {
  pretty: boolean;
  /** Requests are printed, too. */
  verbose: boolean;
  /** Lines are commands of the human monitor. */
  human: boolean;
  /** A text of one or more lines, without the last line's end. */
  print: (text: string) => void;
  clock: HostClock;
  /** Where a job's progress is shown. */
  screen: Screen;
}

export type Outcome = 'done' | 'failed' | 'exit' | 'disconnected';

/** Lines in, answers out; knows nothing of terminals. */
export class Shell {
  readonly #client: QmpClient;
  readonly #properties: ShellProperties;
  readonly #endingJobs: EndingJobs;
  #schema: Promise<ServerSchema> | undefined;
  /** The actions of a `transaction(` that is being written. */
  #actions: Array<{ type: string; data: JsonObject }> | undefined;
  /** One of them was no action: the others are not sent without it. */
  #hasBadAction = false;
  /** Of `wait`. */
  #watch: JobWatch | undefined;
  #view: ProgressView | undefined;
  /** The connection's end is no surprise: the server was told to end, or we go. */
  isLeaving = false;

  constructor(client: QmpClient, properties: ShellProperties) {
    this.#client = client;
    this.#properties = properties;
    this.#endingJobs = new EndingJobs(client);
  }

  get prompt(): string {
    if (this.#actions) return 'TRANS> ';
    return this.#properties.human ? '(hmp) ' : '(qmp) ';
  }

  get welcome(): string {
    const { version } = this.#client.greeting as { version?: { qemu?: JsonObject; package?: JsonValue } };
    const { major = '?', minor = '?', micro = '?' } = version?.qemu ?? {};
    const about =
      typeof version?.package === 'string' && version.package !== '' ? ` (${version.package})` : '';
    const server = `${[major, minor, micro].map((part) => formatJson(part)).join('.')}${about}`;
    return `Connected to QMP server ${server}\nhelp tells what there is, exit leaves.`;
  }

  async run(line: string): Promise<Outcome> {
    const text = line.trim();
    if (text === '' || text.startsWith('#')) return 'done';
    if (text === 'exit') return 'exit';
    this.#noteQuit(text);
    return this.#tell(() => {
      const job = this.#actions ? undefined : /^wait\s+(\S+)$/.exec(text)?.[1];
      if (job !== undefined) return this.#waitFor(job);
      if (this.#properties.human) return this.#runHuman(text);
      const isAction = this.#actions !== undefined || /^transaction\(/.test(text);
      return isAction ? this.#takeActions(text) : this.#runCommand(text);
    });
  }

  /** A command whose words are apart already. */
  runWords(words: readonly string[]): Promise<Outcome> {
    const text = words.join(' ');
    this.#noteQuit(text);
    return this.#tell(async () => {
      if (this.#properties.human) return this.#runHuman(text);
      if (words[0] === 'help') return this.#help(words.slice(1));
      const schema = words.some((word) => word.includes('=')) ? await this.#getSchema() : undefined;
      return this.#request(parseWords(words, (command, path) => schema?.kindsOf(command, path)));
    });
  }

  #noteQuit(text: string): void {
    this.isLeaving ||= this.#properties.human ? /^(q|quit)$/.test(text) : /\bquit\b/.test(text);
  }

  async #tell(body: () => Promise<Outcome>): Promise<Outcome> {
    try {
      return await body();
    } catch (error) {
      if (error instanceof BlockError && error.kind === 'closed') return this.#disconnected();
      if (!isForPeople(error)) throw error;
      this.#properties.print(error.message);
      return 'failed';
    }
  }

  async #waitFor(id: string): Promise<Outcome> {
    const { clock, screen } = this.#properties;
    const watch = (this.#watch = this.watch(id));
    const view = (this.#view = new ProgressView(screen, clock, id));
    try {
      const { isGood, text } = await watch.wait((state) => view.show(state));
      view.end(text);
      return isGood ? 'done' : 'failed';
    } finally {
      this.#watch = this.#view = undefined;
    }
  }

  /** Follows a job from now on. */
  watch(id: string): JobWatch {
    const isEnding = (): boolean => this.#endingJobs.has(id);
    return new JobWatch(this.#client, this.#properties.clock, { id, isEnding });
  }

  /** Whether a `wait` was under way; it ends. */
  stopWaiting(): boolean {
    this.#watch?.stop();
    return this.#watch !== undefined;
  }

  /** No more lines come: a transaction that was not closed is not sent. */
  end(): Outcome {
    if (!this.#actions) return 'done';
    this.#actions = undefined;
    this.#properties.print("transaction( has no closing ')': nothing of it was sent");
    return 'failed';
  }

  /** A line of a transaction: `transaction(`, an action, `)`, or all in one. */
  async #takeActions(text: string): Promise<Outcome> {
    const inside = this.#actions ? text : text.slice('transaction('.length).trim();
    this.#actions ??= [];
    const isLast = inside === ')' || /\s\)$/.test(inside);
    const action = (isLast ? inside.slice(0, -1) : inside).trim();
    try {
      if (action !== '') this.#actions.push(await this.#parseAction(action));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#hasBadAction = true;
      this.#properties.print(error.message);
      if (!isLast) return 'failed';
    }
    return isLast ? this.#sendActions(this.#actions) : 'done';
  }

  async #parseAction(text: string): Promise<{ type: string; data: JsonObject }> {
    if (text.startsWith('{'))
      throw new BlockError('invalid', 'an action of a transaction is COMMAND KEY=VALUE ...');
    const schema = await this.#getSchema();
    const { execute, arguments: data = {} } = parseCommandLine(text, (command, path) =>
      schema.kindsOf(command, path),
    );
    return { type: execute as string, data: data as JsonObject };
  }

  async #sendActions(actions: Array<{ type: string; data: JsonObject }>): Promise<Outcome> {
    const isBad = this.#hasBadAction;
    this.#actions = undefined;
    this.#hasBadAction = false;
    if (!isBad) return this.#request({ execute: 'transaction', arguments: { actions } });
    this.#properties.print('The transaction was not sent: one of its actions could not be read');
    return 'failed';
  }

  /** For readline: completions, and what they complete. */
  async complete(line: string): Promise<[string[], string]> {
    if (this.#properties.human) return [[], line];
    const schema = await this.#getSchema();
    const firstWords = this.#actions
      ? [...schema.valuesOf('transaction', ['actions', 'type']), ')']
      : [...schema.commandNames, 'transaction(', 'wait', 'help', 'exit'];
    const namesOf = (command: string, path: readonly string[]): Promise<string[]> =>
      liveNames(this.#client, command, path);
    return complete(schema, line, { firstWords, namesOf });
  }

  printEvent({ event, data, timestamp }: QmpEvent): void {
    this.#view?.clear();
    this.#printJson({ timestamp, event, ...(Object.keys(data).length > 0 && { data }) });
  }

  #getSchema(): Promise<ServerSchema> {
    return (this.#schema ??= ServerSchema.fetch(this.#client));
  }

  #disconnected(): Outcome {
    if (!this.isLeaving) this.#properties.print('The server closed the connection');
    return 'disconnected';
  }

  async #runHuman(text: string): Promise<Outcome> {
    const request = { execute: 'human-monitor-command', arguments: { 'command-line': text } };
    if (this.#properties.verbose) this.#printJson(request);
    try {
      const output = await this.#client.request(request);
      if (output === '') this.#endingJobs.noteLine(text);
      const shown = (typeof output === 'string' ? output : formatJson(output)).replace(/\r?\n$/, '');
      if (shown !== '') this.#properties.print(shown.replaceAll('\r\n', '\n'));
      return 'done';
    } catch (error) {
      if (!(error instanceof QmpError)) throw error;
      this.#properties.print(`Error: ${error.message}`);
      return 'failed';
    }
  }

  async #runCommand(text: string): Promise<Outcome> {
    if (/^help(\s|$)/.test(text)) {
      return this.#help(splitWords(text).slice(1));
    }
    // A raw request and one without arguments need no schema.
    const schema = text.startsWith('{') || !text.includes('=') ? undefined : await this.#getSchema();
    const request = parseCommandLine(text, (command, path) => schema?.kindsOf(command, path));
    return this.#request(request);
  }

  async #help(words: readonly string[]): Promise<Outcome> {
    this.#properties.print(helpText(await this.#getSchema(), words));
    return 'done';
  }

  async #request(request: JsonObject): Promise<Outcome> {
    const own = 'id' in request ? { id: request['id'] } : {};
    if (this.#properties.verbose) this.#printJson(request);
    try {
      const answer = await this.#client.request(request);
      this.#endingJobs.note(request);
      this.#printJson({ return: answer, ...own });
      return 'done';
    } catch (error) {
      if (!(error instanceof QmpError)) throw error;
      this.#printJson({ ...own, error: toQmpError(error) });
      return 'failed';
    }
  }

  #printJson(message: { [key: string]: Writable }): void {
    const text = this.#properties.pretty
      ? formatJsonPretty(message).replaceAll('\r\n', '\n')
      : formatJson(message);
    this.#properties.print(text);
  }
}
