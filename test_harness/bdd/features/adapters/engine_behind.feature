Feature: The engine behind the service
  Whoever rolls out an engine looks at it through the service: what it says it is, whether it
  follows a conversation, whether it stops when it is told to.

  Background:
    Given a service whose model is called "assistant"

  @ORCH-3032 @OC-ADAPT-5011
  Scenario: It says what it is
    When the operator asks for /v1/replicasets
    Then the answer is 200 with
      | 0.engine                    | something |
      | 0.engine_version            | something |
      | 0.model_digest              | something |
      | 0.replicas.0.state          | Ready     |
    When acme submits to "assistant"
      | task                    | max_tokens |
      | The river rises because | 8          |
    Then "The river rises because" ends well
    When acme asks for /v1/tasks/{The river rises because}/determinism
    Then the answer is 200 with
      | engine_version | something |

  @OC-ADAPT-5001 @ORCH-3054
  Scenario: It decodes as many tokens as were asked for, and stops when it is told to
    When acme submits to "assistant"
      | task                        | max_tokens | ctx  |
      | One, two, three, four, five, | 5          | 512  |
      | The longest story ever told | 800        | 1024 |
    Then "One, two, three, four, five," ends well
    When "The longest story ever told" is read up to token 2 and cancelled
    Then the stream of "The longest story ever told" ends with
      | event    | end  |
      | canceled | true |
    When acme submits to "assistant"
      | task                 | max_tokens |
      | And afterwards there was | 4          |
    Then "And afterwards there was" ends well

  @OC-ADAPT-5010
  Scenario: It follows a conversation through its own template
    When acme says to "assistant", as "greeting"
      | role   | content                         |
      | system | You answer in one short word.   |
      | user   | What is the capital of France?  |
    Then "greeting" ends well
    When acme asks for /v1/tasks/{greeting}/determinism
    Then the answer is 200 with
      | request.prompt | something |
