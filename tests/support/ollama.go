// Renders chats with a Modelfile's TEMPLATE as Ollama does: Go's text/template, system messages in .System too,
// neighbours of one role put together. Reads {"template", "chats"} from stdin, writes the texts as a JSON list.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var asked struct {
		Template string
		Chats    [][]message
	}
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	parsed, err := template.New("").Option("missingkey=zero").Parse(asked.Template)
	must(err)
	texts := make([]string, len(asked.Chats))
	for i, chat := range asked.Chats {
		var system []string
		var together []*message
		for _, one := range chat {
			one := one
			if one.Role == "system" {
				system = append(system, one.Content)
			}
			if last := len(together) - 1; last >= 0 && together[last].Role == one.Role {
				together[last].Content += "\n\n" + one.Content
			} else {
				together = append(together, &one)
			}
		}
		var out strings.Builder
		must(parsed.Execute(&out, map[string]any{
			"System": strings.Join(system, "\n\n"), "Messages": together, "Response": "",
		}))
		texts[i] = out.String()
	}
	must(json.NewEncoder(os.Stdout).Encode(texts))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
