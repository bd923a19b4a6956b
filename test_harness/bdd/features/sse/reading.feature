Feature: Reading a stream
  Networks break, laptops close, a dashboard wants the answer as well. A stream is the same for
  everybody who reads it, whenever they come.

  Background:
    Given a service whose model is called "assistant"

  @OC-CTRL-2020 @OC-CTRL-2021 @OC-CTRL-2022
  Scenario: Who comes back tomorrow reads what was read today
    When acme submits to "assistant"
      | task                    | max_tokens |
      | In the beginning there was | 16         |
    Then "In the beginning there was" ends well
    And "In the beginning there was" reads the same again, from the start

  @ORCH-2002
  Scenario: A train goes through two tunnels
    When acme submits to "assistant"
      | task                        | max_tokens |
      | The train left the station | 40         |
    And "The train left the station" is read up to token 5 and the connection breaks
    And "The train left the station" is read up to token 7 and the connection breaks
    And "The train left the station" is read on
    Then "The train left the station" ends well
    And "The train left the station" reads the same again, from the start

  @OC-CTRL-2023 @ORCH-3100
  Scenario: A client plans by what the stream says beside the tokens
    When acme submits to "assistant"
      | task                     | max_tokens |
      | How long will this take? | 8          |
    Then the first metrics event of "How long will this take?" shows
      | queue_depth         | something |
      | on_time_probability | something |
      | kv_warmth           | something |
    And "How long will this take?" ends well
