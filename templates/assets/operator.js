// Messages, previews, the recycle bin: made by the server; this adds theme, keys and the viewer's clock.

import { startShell } from "./shell.js";
import { wordTimes } from "./clock.js";

startShell({ r: () => location.reload() });
wordTimes(document.body);
