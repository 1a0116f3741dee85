import type { ConsoleLines } from '../../web/console.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { parseCommandLine } from '../shell/command-line.js';
import { complete } from '../shell/completion.js';
import { liveNames } from '../shell/live-names.js';
import { ServerSchema } from '../shell/server-schema.js';

/** Lines of the page's console are the shell's. */
export async function linesOver(client: QmpClient): Promise<ConsoleLines> {
  const schema = await ServerSchema.fetch(client);
  return {
    parse: (line) => parseCommandLine(line, (command, path) => schema.kindsOf(command, path)),
    complete: (line, isOffered) =>
      complete(schema, line, {
        firstWords: schema.commandNames.filter(isOffered),
        namesOf: (command, path) => liveNames(client, command, path),
      }),
  };
}
